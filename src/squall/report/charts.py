"""The plots of what a run learned: losses, errors, other metrics, the rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from squall.report.blocks import Chart
from squall.report.draw import MARKERS, SPLIT_COLOURS, dotted, figure, line, upright
from squall.report.read import SPLITS, RunData
from squall.report.series import running_mean, thinned, window_of
from squall.report.sessions import sessions
from squall.report.values import mapping, number, whole
from squall.report.words import plain, plural, written
from squall.units import count

LINKED = "training"
"""Charts over the course of the training zoom together."""

_FEW_EPOCHS = 10
_MOST_METRICS = 24
_MOST_EPOCH_MARKERS = 40
_STEEP = 300.0  # the greatest is so many times the least: a linear axis would show nothing but the greatest


def axis(run: RunData) -> str:
    """What x counts."""
    if run.minimises:
        return run.period[0]
    return "epoch" if run.per_epoch else "step"


def over(*runs: RunData, name: str = "") -> dict[str, Any]:
    """An x axis that counts epochs, or steps where a run's epochs are unknown; whole ones where they are few.

    Arguments:
        name: what it counts, where that is something else.
    """
    name = name or ("epoch" if all(run.per_epoch for run in runs) else "step")
    reached = max((run.at(run.steps_done) for run in runs), default=0)
    few = name != "step" and 1 <= reached <= _FEW_EPOCHS
    form = ".2~f" if name == "epoch" else ",.0f"
    return {"unifiedhovertitle": {"text": f"{name} %{{x:{form}}}"}, **({"dtick": 1} if few else {})}


def along(run: RunData) -> dict[str, Any]:
    """The x axis of one run."""
    return over(run, name=axis(run) if run.minimises else "")


def log_button(values: Sequence[float], steep: float = _STEEP) -> Literal["off", "on"] | None:
    """Whether an axis may be logarithmic, and is from the start."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite or min(finite) <= 0:
        return None
    return "on" if max(finite) > steep * min(finite) else "off"


def loss(run: RunData) -> Chart | None:
    """The loss of each step and its running mean; validation and test at the ends of epochs."""
    steps, called = run.steps, ("push", "pushes") if run.asynchronous else ("step", "steps")
    x = [run.at(index + 1) for index in steps.index]
    window = window_of(len(steps))
    mean = running_mean(x, steps.loss, steps.samples, window)
    traces, words = [], []
    if mean[1]:
        raw = thinned(x, steps.loss)
        if window > 1:
            traces.append(line(f"each {called[0]}", *raw, "$c1/0.28", width=1))
        name = f"training, mean of {count(window)} {called[1]}" if window > 1 else "training"
        traces.append(line(name, *mean, SPLIT_COLOURS["train"]))
        first, last = written(raw[1][0]), written(mean[1][-1])
        seen = f" of {plural(sum(run.pushes.samples), 'sample')} in all" if run.asynchronous else ""
        words.append(f"Training from {first} to {last} in {plural(len(steps), *called)}{seen}.")
    for split in ("train", "val", "test"):
        at, values = run.of_epochs(split, "loss")
        if not any(map(math.isfinite, values)) or (split == "train" and len(at) > _MOST_EPOCH_MARKERS):
            continue
        own = {"mode": "markers"} if split == "train" and mean[1] else {}
        name = "training, by epoch" if split == "train" else SPLITS[split]
        traces.append(dotted(name, at, values, SPLIT_COLOURS[split], MARKERS[split], **own))
        if split != "train":
            words.append(reading(SPLITS[split], at, values))
    if not traces:
        return None
    shapes, notes, told = marks(run)
    drawn = figure(traces, axis(run), shapes=shapes, annotations=notes, xaxis=along(run))
    return Chart("loss", "Loss", drawn, " ".join([*words, *told]), log=log_button(mean[1] or [1.0]), linked=LINKED)


def metrics(run: RunData) -> tuple[list[Chart], int]:
    """Error where there is an accuracy, and other metrics and logged values over epochs; and how many are left out."""
    names = {str(name) for epoch in run.epochs for split in SPLITS for name in mapping(epoch.get(split))} - {"loss"}
    names -= {"gradient_norm"} if run.minimises else set()
    found = [_metric(run, name) for name in sorted(names, key=lambda name: (name != "accuracy", name))]
    logged = {str(name) for record in run.logs for name in mapping(record.get("values"))}
    found += [_logged(run, name) for name in sorted(logged)]
    drawn = [chart for chart in found if chart is not None]
    return drawn[:_MOST_METRICS], len(drawn[_MOST_METRICS:])


def _metric(run: RunData, name: str) -> Chart | None:
    """A metric of all splits at the ends of epochs; an accuracy is drawn as an error."""
    error = name == "accuracy"
    traces, words = [], []
    for split, called in SPLITS.items():
        at, found = run.of_epochs(split, name)
        values = [100 * (1 - value) for value in found] if error else found
        if any(map(math.isfinite, values)):
            form = ".2f" if error else ".4~g"
            traces.append(dotted(called, at, values, SPLIT_COLOURS[split], MARKERS[split], form=form))
            words.append(reading(called, at, values, " %" if error else "", best=error, period=run.period[0]))
    if not traces:
        return None
    y = {"ticksuffix": " %", "rangemode": "tozero"} if error else {}
    drawn = figure(traces, run.period[0], xaxis=along(run), yaxis=y)
    title = "Error" if error else name.capitalize() if name.islower() else name
    button = log_button([y for trace in traces for y in trace["y"] if y is not None]) if error else None
    return Chart(f"metric-{name}", title, drawn, " ".join(words), log=button, linked=LINKED)


def _logged(run: RunData, name: str) -> Chart | None:
    """A value that the user's loop logged."""
    found = [(run.at(whole(r.get("step")) + 1), number(mapping(r.get("values")).get(name))) for r in run.logs]
    at, values = thinned([at for at, _ in found], [value for _, value in found])
    if not values:
        return None
    drawn = figure([dotted(name, at, values, "$c4")], axis(run), xaxis=along(run))
    return Chart(f"logged-{name}", name, drawn, f"Logged by the loop; last {written(values[-1])}.", linked=LINKED)


def rate(run: RunData) -> Chart | None:
    """The rate of each step, or at the ends of epochs."""
    at, rates = run.rates()
    x, y = thinned([run.at(step) for step in at], rates)
    if not y:
        return None
    top, ends = max(y), "; at the ends of epochs" if run.asynchronous else ""
    first = f"First {written(y[0])}"
    where = f"{run.update[0]} {count(round(at[rates.index(top)]) - 1)}"
    highest = f", highest {written(top)} in {where}" if top > y[0] else ""
    words = f"{first}{highest}, last {written(y[-1])}{ends}."
    trace = (dotted if run.asynchronous else line)("rate", x, y, "$c4")
    drawn = figure([trace], axis(run), xaxis=along(run), yaxis={"rangemode": "tozero"})
    button = log_button(y, math.inf)
    return Chart("rate", "Rate", drawn, words, log=button, linked=LINKED)


def marks(run: RunData) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]:
    """Upright lines where processes came anew and where the run diverged: shapes, annotations, words."""
    shapes = [upright(run.at(session.first_step))[0] for session in sessions(run)[1:]]
    told = ["Dotted: processes began anew."] if shapes else []
    if run.state != "diverged":
        return shapes, [], told
    shape, words = upright(run.at(run.steps_done), "$bad", "diverged ", "solid")
    return [*shapes, shape], [words], told


def reading(
    called: str,
    at: Sequence[int],
    values: Sequence[float],
    unit: str = "",
    *,
    best: bool = True,
    period: str = "epoch",
) -> str:
    """ "Test 6.67 %, its lowest." or "Test 7.01 %; lowest 6.67 % in epoch 5."."""

    def told(value: float) -> str:
        return f"{value:.2f}{unit}" if unit else written(value)

    words = f"{called.capitalize()} {told(values[-1])}"
    found = [(value, x) for x, value in zip(at, values, strict=True) if math.isfinite(value)]
    if not best or not found or len(values) < 2:
        return f"{plain(words)}."
    low, x = min(found)
    return f"{words}, its lowest." if low == values[-1] else f"{words}; lowest {told(low)} in {period} {x}."
