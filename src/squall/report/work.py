"""The plots of how a run worked: its speed, where the time goes, its ranks, its sessions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from squall.records import SPENT
from squall.report.blocks import Chart
from squall.report.charts import LINKED, along, axis, marks
from squall.report.draw import NUM_COLOURS, PART_COLOURS, band, bars, dotted, figure, line, thousands
from squall.report.read import RunData
from squall.report.series import median, stretches
from squall.report.sessions import Save, sessions
from squall.report.values import listed, mapping, number, whole
from squall.report.words import duration, plain, plural
from squall.units import count

_MOST_LINES = 64
_FEW_SESSIONS = 12
_EPOCHS = 2  # so many make a curve; before, the steps do


def speed(run: RunData) -> Chart | None:
    """Samples a second by epoch; within the first epochs, by stretches of steps."""
    if len(run.epochs) >= _EPOCHS:
        x = [float(whole(epoch.get("epoch")) + 1) for epoch in run.epochs]
        y = [number(epoch.get("samples_per_second")) for epoch in run.epochs]
    else:
        x, y = _speed_of_steps(run)
    finite = [value for value in y if math.isfinite(value)]
    if not finite:
        return None
    shapes, _, told = marks(run)
    words = f"Median {median(finite):,.0f}, between {min(finite):,.0f} and {max(finite):,.0f}."
    drawn = figure(
        [dotted("samples/s", x, y, "$c1", form=",.0f")],
        axis(run),
        shapes=shapes,
        xaxis=along(run),
        yaxis=thousands(max(finite)),
    )
    return Chart("speed", "Throughput", drawn, " ".join([words, *told]), unit=f"samples/{_s(run)}", linked=LINKED)


def _speed_of_steps(run: RunData) -> tuple[list[float], list[float]]:
    steps = run.steps
    evaluation = {whole(epoch.get("step"), -1): _seconds(epoch.get("evaluation")) for epoch in run.epochs}
    x, y = [], []
    for stretch in stretches(len(steps) - 1, 40):
        seconds = steps.seconds[stretch[-1] + 1] - steps.seconds[stretch[0]]
        seconds -= sum(evaluation.get(steps.index[i], 0.0) for i in stretch)
        if seconds > 0:
            x.append(run.at(steps.index[stretch[-1] + 1] + 1))
            y.append(sum(steps.samples[i + 1] for i in stretch) / seconds)
    return x, y


def time(run: RunData) -> Chart | None:
    """Where the time goes, stacked: by epoch; within the first epochs by stretches of steps."""
    by_epoch = len(run.epochs) >= _EPOCHS or not any(value > 0 for part in run.steps.spent.values() for value in part)
    x, parts = split_of_epochs(run) if by_epoch else _split_of_steps(run)
    used = {name: values for name, values in parts.items() if any(value > 0 for value in values)}
    if not used:
        return None
    total = sum(map(sum, used.values()))
    named = [(part, part_name(run, part), values) for part, values in used.items()]
    words = ", ".join(f"{name} {100 * sum(values) / total:.1f} %" for _, name, values in named)
    traces = [bars(name, x, values, PART_COLOURS[part], hovertemplate="%{y:.3~s}s") for part, name, values in named]
    gap = 0.15 if len(x) <= 60 else 0
    drawn = figure(traces, axis(run), barmode="stack", bargap=gap, xaxis=along(run))
    return Chart(
        "time", "Where the time goes", drawn, f"{words.capitalize()}.", unit=f"{_s(run)} {whose(run)}", linked=LINKED
    )


def whose(run: RunData) -> str:
    """Whose time is told of."""
    return "of all replicas" if run.asynchronous else "on rank 0"


def part_name(run: RunData, part: str) -> str:
    """What a part of the time is called; of a minimisation, which evaluates the batch, evaluation is measuring."""
    return "measuring" if run.minimises and part == "evaluation" else part


def _s(run: RunData) -> str:
    return "simulated s" if run.simulated else "s"


def split_of_epochs(run: RunData) -> tuple[list[float], dict[str, list[float]]]:
    """Epochs, and for each part the seconds that it took of each."""
    x = [float(whole(epoch.get("epoch")) + 1) for epoch in run.epochs]
    parts = {name: [_seconds(mapping(epoch.get("spent")).get(name)) for epoch in run.epochs] for name in SPENT}
    return x, {**parts, "evaluation": [_seconds(epoch.get("evaluation")) for epoch in run.epochs]}


def _split_of_steps(run: RunData) -> tuple[list[float], dict[str, list[float]]]:
    cut = stretches(len(run.steps), 24)
    x = [run.at(run.steps.index[stretch[-1]] + 1) for stretch in cut]
    columns = run.steps.spent.items()
    return x, {name: [sum(_seconds(column[i]) for i in part) for part in cut] for name, column in columns}


def _seconds(value: Any) -> float:
    found = number(value)
    return found if math.isfinite(found) and found > 0 else 0.0


def ranks(run: RunData) -> Chart | None:
    """Seconds a sample of each rank; the slowest is drawn strong."""
    paces = [(float(whole(e.get("epoch")) + 1), [number(p) for p in listed(e.get("pace"))]) for e in run.epochs]
    paces = [(at, pace) for at, pace in paces if len(pace) > 1 and any(map(math.isfinite, pace))]
    if not paces:
        return None
    slow, ratio, where = slowest(paces)
    num, at = max(len(pace) for _, pace in paces), [x for x, _ in paces]
    of = [[1e3 * pace[rank] if rank < len(pace) else math.nan for _, pace in paces] for rank in range(num)]
    traces: list[dict[str, Any]] = []
    few = num <= NUM_COLOURS
    if few or num <= _MOST_LINES:
        for rank in (rank for rank in range(num) if rank != slow):
            if few:
                traces.append(dotted(f"rank {rank}", at, of[rank], f"$c{rank + 1}", width=1.5))
                continue
            quiet: dict[str, Any] = {"hoverinfo": "skip", "hovertemplate": None, "showlegend": not traces}
            traces.append(line("other ranks", at, of[rank], "$muted/0.35", width=1, **quiet))
    else:
        finite = [[1e3 * value for value in pace if math.isfinite(value)] for _, pace in paces]
        traces.append(band("all ranks", at, [min(p) for p in finite], [max(p) for p in finite], "$muted/0.2"))
    strong = f"$c{slow + 1}" if few else "$c2"
    traces.append(dotted(f"rank {slow}, the slowest", at, of[slow], strong, width=3))
    middles = [1e3 * median(pace) for _, pace in paces]
    traces.append(line("median", at, middles, "$ink", line={"color": "$ink", "width": 1.5, "dash": "dash"}))
    words = f"Rank {slow} is the slowest of {num}: at most {ratio:.2f} times the median, in epoch {where:.0f}."
    drawn = figure(traces, axis(run), xaxis=along(run), yaxis={"rangemode": "tozero"})
    return Chart("ranks", "Pace of each rank", drawn, words, unit="ms a sample", linked=LINKED)


def slowest(paces: Sequence[tuple[float, Sequence[float]]]) -> tuple[int, float, float]:
    """The rank slowest over all epochs (by its mean ratio to the median), its greatest ratio, and the epoch of that."""
    ratios: dict[int, list[tuple[float, float]]] = {}
    for at, pace in paces:
        middle = median(pace)
        for rank, value in enumerate(pace):
            if math.isfinite(value) and middle > 0:
                ratios.setdefault(rank, []).append((value / middle, at))
    if not ratios:
        return 0, 1.0, paces[0][0]
    slow = max(ratios, key=lambda rank: sum(ratio for ratio, _ in ratios[rank]) / len(ratios[rank]))
    ratio, at = max(ratios[slow])
    return slow, ratio, at


def timeline(run: RunData) -> Chart | None:
    """Sessions one below the other over the training: where each began and ended, what was saved, what failed."""
    found = sessions(run)
    if not found:
        return None
    lane = min(14, max(3, 280 / len(found)))
    traces: list[dict[str, Any]] = []
    for session in found:
        colour = "$c2" if session.outcome in ("killed", "failed", "diverged") else "$c1"
        text = f"session {session.number}: {plural(session.processes, *run.worker)}, {session.outcome}"
        x, y = [run.at(session.first_step), run.at(session.last_step)], [float(session.number)] * 2
        told: dict[str, Any] = {"text": [plain(text, 80)] * 2, "hovertemplate": "%{text}<extra></extra>"}
        traces.append(line(text, x, y, colour, width=lane, showlegend=False, **told))
    saves = [(run.at(save.step), float(session.number), save) for session in found for save in session.saves]
    good = [place for place in saves if not place[2].error]
    bad = [place for place in saves if place[2].error]
    traces += [_saves("checkpoint", good, "line-ns-open", "$surface", lane, run.update[0])] * bool(good)
    traces += [_saves("checkpoint failed", bad, "x", "$bad", lane, run.update[0])] * bool(bad)
    words = [plural(len(found), "session"), plural(len(found) - 1, "restart"), plural(len(good), "checkpoint")]
    words += [f"{count(len(bad))} failed"] if bad else []
    few = len(found) <= _FEW_SESSIONS
    ticks = found if few else found[:: math.ceil(len(found) / _FEW_SESSIONS)]
    names = [f"{s.number}: {plural(s.processes, *run.worker)}" if few else str(s.number) for s in ticks]
    y_axis: dict[str, Any] = {"tickvals": [s.number for s in ticks], "ticktext": names, "showgrid": False}
    y_axis |= {"autorange": False, "range": [len(found) + 0.6, 0.4]}
    x_axis = {**along(run), "rangemode": "tozero"}
    drawn = figure(traces, axis(run), xaxis=x_axis, yaxis=y_axis, hovermode="closest", showlegend=False)
    drawn["height"] = min(100 + 28 * len(found), 440)
    return Chart("sessions", "Sessions over the training", drawn, ", ".join(words) + ".", wide=True, linked=LINKED)


def _saves(
    name: str, places: Sequence[tuple[float, float, Save]], symbol: str, colour: str, lane: float, update: str
) -> dict[str, Any]:
    """Marks on the lanes where checkpoints were saved, or were not."""
    told = [
        f"{update} {count(save.step)}: {plain(save.error, 80) or f'saved, blocked {duration(save.blocked)}'}"
        for _, _, save in places
    ]
    marker = {"color": colour, "symbol": symbol, "size": min(9, lane), "line": {"color": "$surface", "width": 1.5}}
    marks_: dict[str, Any] = {
        "mode": "markers",
        "marker": marker,
        "text": told,
        "hovertemplate": "%{text}<extra></extra>",
    }
    return line(name, [x for x, _, _ in places], [y for _, y, _ in places], colour, showlegend=False, **marks_)
