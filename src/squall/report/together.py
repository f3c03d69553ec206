"""The plots of several runs on common axes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from squall.report.blocks import Chart
from squall.report.charts import LINKED, log_button, over
from squall.report.draw import DASHES, NUM_COLOURS, PART_COLOURS, band, bars, dotted, figure, line, thousands
from squall.report.groups import LEAST, Group, split_used
from squall.report.read import SPLITS, RunData
from squall.report.series import Points, running_mean, thinned, window_of
from squall.report.values import number
from squall.report.words import plain, written
from squall.report.work import split_of_epochs, whose

_MOST_NAMED = 12
_STEEP = 10.0  # runs differ where their errors are small: a logarithmic axis shows it


def colour(at: int) -> str:
    """The colour of a run."""
    return f"$c{at % NUM_COLOURS + 1}"


def _style(at: int) -> dict[str, Any]:
    return {"color": colour(at), "width": 1.75, "dash": DASHES[at // NUM_COLOURS % len(DASHES)]}


def _axis(runs: Sequence[RunData]) -> str:
    if all(run.minimises for run in runs):
        return "evaluation"
    return "epoch" if all(run.per_epoch for run in runs if run.started) else "step"


def _at(run: RunData, axis: str, steps: float) -> float:
    return run.at(steps) if axis == "epoch" else steps


def _passes(runs: Sequence[RunData]) -> str:
    """The axis of what is measured by epoch."""
    return "evaluation" if all(run.minimises for run in runs) else "epoch"


def _updates(runs: Sequence[RunData]) -> str:
    """What a loss is of."""
    kinds = {"pushes" if run.asynchronous else "steps": None for run in runs if not run.minimises}
    return " or ".join(sorted(kinds, reverse=True))


def _frame(runs: Sequence[RunData], axis: str) -> dict[str, Any]:
    known = [run for run in runs if run.started] if axis != "step" else []
    x = over(*known, name=axis if _some(runs) and known else "")
    return {"xaxis": x, "showlegend": len(runs) <= _MOST_NAMED}


def loss(runs: Sequence[RunData]) -> Chart | None:
    """Each run's running mean of the training loss."""
    axis, traces = _axis(runs), []
    drawn_values: list[float] = []
    for at, run in enumerate(runs):
        xs, ys = _losses(run, axis)
        if ys:
            traces.append(line(run.label, xs, ys, colour(at), line=_style(at)))
            drawn_values += ys
    if not traces:
        return None
    words = f"Training loss: a running mean over a fiftieth of each run's {_updates(runs)}"
    if _some(runs):
        words += "; of L-BFGS the value after each iteration, decay included"
    if all(run.minimises for run in runs):
        words = "The loss over the training set after each iteration, decay included"
    drawn = figure(traces, axis, **_frame(runs, axis))
    return Chart(
        "loss", "Loss", drawn, f"{words}.{_meaning(runs)}", log=log_button(drawn_values, _STEEP), linked=LINKED
    )


def _losses(run: RunData, axis: str) -> Points:
    """The running mean of a run's training loss; of a minimisation its values."""
    if run.minimises:
        return thinned(list(map(float, run.passes)), [number(epoch.get("train_loss")) for epoch in run.epochs], 300)
    x = [_at(run, axis, index + 1) for index in run.steps.index]
    return running_mean(x, run.steps.loss, run.steps.samples, window_of(len(x)), most=300)


def _meaning(runs: Sequence[RunData]) -> str:
    """What an epoch of a minimisation is, where others have epochs."""
    mixed = _some(runs) and _passes(runs) == "epoch"
    return " An evaluation of L-BFGS is an epoch: one pass over the training set." if mixed else ""


def _some(runs: Sequence[RunData]) -> bool:
    return any(run.minimises for run in runs)


def error(runs: Sequence[RunData], grouped: Sequence[Group]) -> Chart | None:
    """Each run's error over epochs; where three or more differ in seed only, their mean and spread."""
    split = split_used(runs)
    if not split:
        return None
    traces, words = [], []
    drawn_values: list[float] = []
    bands = [(group, _mean_errors(group.seeds, split)) for group in grouped if len(group.seeds) >= LEAST]
    averaged = [run for group, points in bands if points[0] for run in group.runs]
    for at, run in enumerate(runs):
        x, accuracies = run.over_passes(split, "accuracy")
        y = [100 * (1 - value) for value in accuracies]
        finite = [value for value in y if math.isfinite(value)]
        if not finite:
            continue
        drawn_values += finite
        faint = run in averaged
        style = {**_style(at), "color": f"{colour(at)}/0.4", "width": 1} if faint else _style(at)
        traces.append(dotted(run.label, x, y, style["color"], line=style, form=".2f"))
    for number_, (group, (epochs, means, stds)) in enumerate(bands):
        if not epochs:
            continue
        own = "$ink" if len(bands) == 1 else f"$c{number_ % NUM_COLOURS + 1}"
        under, over = ([m + sign * s for m, s in zip(means, stds, strict=True)] for sign in (-1, 1))
        traces.insert(0, {**band(f"{group.label}, ± std", epochs, under, over, f"{own}/0.16"), "showlegend": False})
        traces.append(line(f"{group.label}, mean of {len(group.seeds)}", epochs, means, own, width=2.5, form=".2f"))
        words.append(f"Strong: mean over {len(group.seeds)} seeds, with ± 1 standard deviation.")
    if not traces:
        return None
    axes = {**_frame(runs, _passes(runs)), "yaxis": {"ticksuffix": " %", "rangemode": "tozero"}}
    drawn = figure(traces, _passes(runs), **axes)
    title = f"{SPLITS[split].capitalize()} error"
    return Chart(
        "error", title, drawn, " ".join(dict.fromkeys(words)), log=log_button(drawn_values, _STEEP), linked=LINKED
    )


def _mean_errors(runs: Sequence[RunData], split: str) -> tuple[list[float], list[float], list[float]]:
    """Epochs that all of them measured, and mean and standard deviation of their errors there, in percent."""
    errors = [{e: 100 * (1 - v) for e, v in zip(*run.over_passes(split, "accuracy"), strict=True)} for run in runs]
    common = sorted(set.intersection(*(set(found) for found in errors)))
    common = [epoch for epoch in common if all(math.isfinite(found[epoch]) for found in errors)]
    at = [[found[epoch] for found in errors] for epoch in common]
    return [float(e) for e in common], [statistics.fmean(v) for v in at], [statistics.stdev(v) for v in at]


def rate(runs: Sequence[RunData]) -> Chart | None:
    """Each run's rate."""
    axis, traces = _axis(runs), []
    for at, run in enumerate(runs):
        steps, rates = run.rates()
        x, y = thinned([_at(run, axis, step) for step in steps], rates, 400)
        if y:
            traces.append(line(run.label, x, y, colour(at), line=_style(at)))
    if not traces:
        return None
    frame = {**_frame(runs, axis), "yaxis": {"rangemode": "tozero"}}
    return Chart("rate", "Rate", figure(traces, axis, **frame), linked=LINKED)


def speed(runs: Sequence[RunData]) -> Chart | None:
    """Samples a second by epoch."""
    traces, top = [], 0.0
    for at, run in enumerate(runs):
        x = [float(at) for at in run.passes]
        y = [number(epoch.get("samples_per_second")) for epoch in run.epochs]
        finite = [value for value in y if math.isfinite(value)]
        if finite:
            top = max(top, *finite)
            traces.append(dotted(run.label, x, y, colour(at), line=_style(at), form=",.0f"))
    if not traces:
        return None
    frame = {**_frame(runs, _passes(runs)), "yaxis": thousands(top)}
    words = "Of simulated runs, a simulated second." if any(run.simulated for run in runs) else ""
    drawn = figure(traces, _passes(runs), **frame)
    return Chart("speed", "Throughput", drawn, words, unit="samples/s", linked=LINKED)


def time(runs: Sequence[RunData]) -> Chart | None:
    """Seconds of each part, a bar a run."""
    parts = [{name: sum(values) for name, values in split_of_epochs(run)[1].items()} for run in runs]
    used = [name for name in PART_COLOURS if any(found[name] > 0 for found in parts)]
    if not used:
        return None
    places = list(range(len(runs)))
    traces = [
        bars(
            name,
            [found[name] for found in parts],
            places,
            PART_COLOURS[name],
            orientation="h",
            hovertemplate="%{x:.3~s}s",
        )
        for name in used
    ]
    names = [plain(run.label, 22) for run in runs]
    y = {"tickvals": places, "ticktext": names, "autorange": "reversed", "showgrid": False}
    layout: dict[str, Any] = {"barmode": "stack", "bargap": 0.3, "hovermode": "y unified", "yaxis": y}
    drawn = figure(traces, "seconds", **layout)
    drawn["height"] = min(max(300, 90 + 24 * len(runs)), 900)
    where = " or ".join(dict.fromkeys(whose(run) for run in runs if run.epochs))
    simulated = " Of simulated runs, simulated seconds." if any(run.simulated for run in runs) else ""
    words = (
        f"{where[:1].upper()}{where[1:]}, over all {'epochs' if _passes(runs) == 'epoch' else 'iterations'}.{simulated}"
    )
    return Chart("time", "Where the time goes", drawn, words)


def scaling_charts(found: Sequence[tuple[Group, Sequence[tuple[int, float, float]]]]) -> list[Chart]:
    """Samples a second over processes with the ideal line, and the efficiency."""
    speeds, shares, words = [], [], []
    for at, (group, rows) in enumerate(found):
        processes = [float(p) for p, _, _ in rows]
        least, first, _ = rows[0]
        name = group.label if len(found) > 1 else "measured"
        ideal = [first * p / least for p in processes]
        dash = {"color": "$muted", "width": 1.25, "dash": "dash"}
        called = "ideal" if len(found) == 1 else f"{group.label}, ideal"
        speeds.append(line(called, processes, ideal, "$muted", line=dash, form=",.0f", showlegend=at == 0))
        speeds.append(dotted(name, processes, [speed for _, speed, _ in rows], colour(at), form=",.0f"))
        shares.append(dotted(name, processes, [100 * share for _, _, share in rows], colour(at), form=".1f"))
        p, _, share = rows[-1]
        words.append(f"{written(100 * share, 3)} % at {p} processes{f' ({group.label})' if len(found) > 1 else ''}")
    ticks = sorted({p for _, rows in found for p, _, _ in rows})
    x = {"tickvals": ticks, "unifiedhovertitle": {"text": "%{x} processes"}}
    if len(ticks) > 1 and ticks[-1] / ticks[0] >= 8:
        x["type"] = "log"
    named = len(found) <= _MOST_NAMED
    top = max(value for trace in speeds for value in trace["y"] if value is not None)
    one = figure(speeds, "processes", xaxis=x, yaxis=thousands(top), showlegend=named)
    hundred = line("ideal", [ticks[0], ticks[-1]], [100, 100], "$muted", line=dash, form=".0f")
    percent = {"ticksuffix": " %", "rangemode": "tozero"}
    two = figure([hundred, *shares], "processes", xaxis=x, yaxis=percent, showlegend=named)
    return [
        Chart("scaling", "Throughput over processes", one, "Dashed: ideal.", unit="samples/s"),
        Chart("efficiency", "Scaling efficiency", two, f"{'; '.join(words)}."),
    ]
