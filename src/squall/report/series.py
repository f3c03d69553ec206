"""Long series made short enough to draw without hiding what matters: spikes stay, noise is averaged.

A run of 100,000 steps has more points than a screen has pixels. Two short series stand for the long one: for each of a
few hundred stretches its least and its greatest value, in their order, so that no spike is lost; and the mean over a
sliding window, weighted by samples, so that an epoch's short last minibatch counts for what it is.
"""

from __future__ import annotations

import math
import operator
import statistics
from collections.abc import Sequence
from itertools import pairwise

Points = tuple[list[float], list[float]]


def thinned(x: Sequence[float], y: Sequence[float], most: int = 1000) -> Points:
    """At most about `most` points of a series: the least and greatest of each stretch, its first and its last point.

    Values that are not finite are left out.
    """
    kept = [i for i, value in enumerate(y) if math.isfinite(value)]
    if len(kept) > most:
        size = math.ceil(len(kept) / (most / 2))
        chosen = {kept[0], kept[-1]}
        for start in range(0, len(kept), size):
            stretch = kept[start : start + size]
            chosen.update((min(stretch, key=y.__getitem__), max(stretch, key=y.__getitem__)))
        kept = sorted(chosen)
    return [x[i] for i in kept], [y[i] for i in kept]


def window_of(num_steps: int) -> int:
    """Steps over which a run's loss is averaged: a fiftieth of them, an odd number."""
    return max(num_steps // 50, 1) | 1


def running_mean(
    x: Sequence[float], y: Sequence[float], weights: Sequence[float], window: int, most: int = 400
) -> Points:
    """The weighted mean of the `window` values around each of at most `most` points; values not finite do not count."""
    count = len(y)
    use = [w if math.isfinite(v) and math.isfinite(w) and w > 0 else 0.0 for v, w in zip(y, weights, strict=True)]
    values = [v if w else 0.0 for v, w in zip(y, use, strict=True)]
    positions = sorted({round(i * (count - 1) / max(min(count, most) - 1, 1)) for i in range(min(count, most))})
    half = window // 2
    xs, ys = [], []
    for at in positions:
        low, high = max(at - half, 0), min(at + half + 1, count)
        mass = sum(use[low:high])  # no prefix sums: after a loss of 1e30 they would have lost all that follows
        mean = sum(map(operator.mul, values[low:high], use[low:high])) / mass if mass > 0 else math.nan
        if math.isfinite(mean):
            xs.append(x[at])
            ys.append(mean)
    return xs, ys


def stretches(count: int, most: int) -> list[range]:
    """`count` positions cut into at most `most` ranges of nearly equal length."""
    parts = min(count, most)
    cuts = [count * part // parts for part in range(parts + 1)] if parts else []
    return [range(low, high) for low, high in pairwise(cuts)]


def median(values: Sequence[float]) -> float:
    """The median of the finite ones; nan of none."""
    finite = [value for value in values if math.isfinite(value)]
    return statistics.median(finite) if finite else math.nan


def significant(value: float, digits: int = 5) -> float | None:
    """A number as it goes into the page: a few digits, None where it is not finite."""
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{digits}g}")
    return short if math.isfinite(short) else None
