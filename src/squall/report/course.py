"""The plots of a minimisation over the whole training set: value, gradient and steps, iteration by iteration.

An iteration goes along one direction; each length that it tries is an evaluation of the batch, a pass over the training
set. What it costs is therefore drawn over evaluations, what it does over iterations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from squall.report.blocks import Chart
from squall.report.charts import LINKED, along, log_button, marks, over, reading
from squall.report.draw import MARKERS, SPLIT_COLOURS, dotted, figure, line, upright
from squall.report.read import SPLITS, RunData
from squall.report.series import thinned
from squall.report.values import mapping, number, whole
from squall.report.words import plural, written
from squall.units import count

_FULL = 1e-9  # a step whose length differs from 1 by no more is a full one

Points = tuple[list[float], list[float]]


def value(run: RunData) -> Chart | None:
    """The value that is minimised after each iteration; losses on validation and test data."""
    x, y = _thin(*course(run, lambda record: record.get("train_loss")))
    traces, words = [], []
    if y:
        traces.append(dotted("value", x, y, SPLIT_COLOURS["train"], MARKERS["train"]))
        decay = _decay(run)
        what = "The loss over the training set" + (", decay included," if decay else "")
        words.append(f"{what} from {written(y[0])} to {written(y[-1])} in {plural(run.steps_done, *run.update)}.")
    for split in ("val", "test"):
        at, losses = run.of_epochs(split, "loss")
        if any(map(math.isfinite, losses)):
            points = _thin(at, losses)
            traces.append(dotted(SPLITS[split], *points, SPLIT_COLOURS[split], MARKERS[split]))
            words.append(reading(SPLITS[split], at, losses, period=run.period[0]))
    if not traces:
        return None
    shapes, notes, told = marks(run)
    drawn = figure(traces, run.period[0], shapes=shapes, annotations=notes, xaxis=along(run))
    return Chart("loss", "Loss", drawn, " ".join([*words, *told]), log=log_button(y or [1.0]), linked=LINKED)


def passes(run: RunData) -> Chart | None:
    """Error over evaluations, or the loss where there is no accuracy: what was reached at which cost."""
    reached = run.evaluations
    for metric, title in (("accuracy", "Error over evaluations"), ("loss", "Loss over evaluations")):
        traces, words = [], []
        for split in ("val", "test"):
            at, found = run.over_passes(split, metric)
            values = [100 * (1 - each) for each in found] if metric == "accuracy" else found
            if any(map(math.isfinite, values)):
                points, form = _thin(at, values), ".2f" if metric == "accuracy" else ".4~g"
                traces.append(dotted(SPLITS[split], *points, SPLIT_COLOURS[split], MARKERS[split], form=form))
                unit = " %" if metric == "accuracy" else ""
                words.append(reading(SPLITS[split], at, values, unit, period="evaluation"))
        if not traces:
            continue
        samples = whole(run.started.get("num_samples"))
        seen = f": {plural(reached, 'pass', 'passes')} over {plural(samples, 'sample')}" if samples > 0 else ""
        words.append(f"{plural(reached, 'evaluation')} of the batch{seen}.")
        y = {"ticksuffix": " %", "rangemode": "tozero"} if metric == "accuracy" else {}
        drawn = figure(traces, "evaluation", xaxis=over(run, name="evaluation"), yaxis=y)
        button = log_button([y for trace in traces for y in trace["y"] if y is not None])
        return Chart("passes", title, drawn, " ".join(words), log=button)
    return None


def gradient(run: RunData) -> Chart | None:
    """The gradient's norm after each iteration, and where it would be small enough."""
    every, norms = course(run, lambda record: mapping(record.get("train")).get("gradient_norm"))
    x, y = _thin(every, norms)
    if not y:
        return None
    low = min(norms_ for norms_ in norms if math.isfinite(norms_))
    words = f"From {written(y[0])} to {written(y[-1])}"
    words += f"; least {written(low)} in {run.period[0]} {count(int(every[norms.index(low)]))}" if low < y[-1] else ""
    traces = [dotted("gradient's norm", x, y, "$c1")]
    tolerance = number(mapping(run.recipe.get("sandblaster")).get("tolerance_gradient"))
    if 0 < tolerance < math.inf:
        dash = {"color": "$muted", "width": 1.25, "dash": "dash"}
        traces.append(line("tolerance", [x[0], x[-1]], [tolerance] * 2, "$muted", line=dash))
        words += f". Dashed: converged at {tolerance:g}"
    drawn = figure(traces, run.period[0], xaxis=along(run))
    return Chart(
        "gradient", "Norm of the gradient", drawn, f"{words}.", log="on" if min(y) > 0 else None, linked=LINKED
    )


def lengths(run: RunData) -> Chart | None:
    """How far each iteration went along its direction, and how many lengths it tried."""
    every, found = course(run, lambda record: record.get("lr"))
    x, y = _thin(every, found)
    if not y:
        return None
    finite = [each for each in found if math.isfinite(each)]
    full = sum(abs(each - 1) <= _FULL for each in finite)
    words = [f"{count(full)} of {plural(len(finite), 'step')} as long as the direction"]
    words[0] += f"; shortest {written(min(finite))}, longest {written(max(finite))}" if full < len(finite) else ""
    tried = [after - before for before, after in _trials(run)]
    if tried:
        once = sum(number_ == 1 for number_ in tried)
        words.append(f"{count(once)} of {plural(len(tried), 'iteration')} took the first length that was tried")
        words[-1] += f", most tried {count(max(tried))}" if max(tried) > 1 else ""
    level = upright(0)[0] | {"xref": "paper", "x0": 0, "x1": 1, "yref": "y", "y0": 1, "y1": 1}
    drawn = figure(
        [dotted("length", x, y, "$c4")], run.period[0], shapes=[level], xaxis=along(run), yaxis={"rangemode": "tozero"}
    )
    unit = "of the direction"
    return Chart(
        "lengths", "Length of the steps", drawn, ". ".join(words) + ".", unit=unit, log=log_button(y), linked=LINKED
    )


def course(run: RunData, of: Callable[[dict[str, object]], object]) -> Points:
    """Iterations (from 1) and what their records say of something."""
    return [float(whole(each.get("epoch")) + 1) for each in run.epochs], [number(of(each)) for each in run.epochs]


def _trials(run: RunData) -> list[tuple[int, int]]:
    """For each iteration evaluations before and after it; the very first evaluation is of the beginning."""
    ends = [(whole(each.get("epoch")), whole(each.get("step"), -1) + 1) for each in run.epochs]
    pairs = zip([(-1, 1), *ends], ends, strict=False)
    return [(before, after) for (at, before), (then, after) in pairs if then == at + 1 and after > before]


def _thin(x: Sequence[float], y: Sequence[float]) -> Points:
    return thinned([float(at) for at in x], y)


def _decay(run: RunData) -> bool:
    return number(mapping(run.recipe.get("optimizer")).get("weight_decay")) > 0
