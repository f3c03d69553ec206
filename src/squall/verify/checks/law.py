"""What the weight of a mean follows: the number of processes, the batches of an update, the loss scale, the samples.

The weight with which a mean over the samples enters an update must be 1. Where it is another number, the runs tell what
it follows: a law is told from a constant only by what varies over the runs. A constant is the user's own factor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy

from squall.verify.checks.mixing import reduction, scales
from squall.verify.checks.training import Training, numbers, rounder
from squall.verify.update import Update, close

_EQUAL = 2e-3

Kind = Literal["one", "processes", "batches", "scale", "samples"]
Points = Sequence[tuple[Update, float]]
"""Updates, and the weight of one term of the loss in each."""


@dataclass(frozen=True)
class Law:
    """What the weight of a mean follows: `factor` of an update, `name` in words, times a constant."""

    name: str
    kind: Kind
    factor: Callable[[Update], float]
    constant: float = 1.0


LAWS = (
    Law("1", "one", lambda update: 1.0),
    Law("the number of processes", "processes", lambda update: float(update.processes)),
    Law("1 / the number of processes", "processes", lambda update: 1 / update.processes),
    Law("the number of batches of an update", "batches", lambda update: float(update.window)),
    Law("1 / the number of batches of an update", "batches", lambda update: 1 / update.window),
    Law("the loss scale", "scale", lambda update: update.scaling),
    Law("1 / the loss scale", "scale", lambda update: 1 / update.scaling),
    Law("the samples of a rank's batches", "samples", lambda update: update.samples / update.processes),
    Law("the samples of all batches", "samples", lambda update: float(update.samples)),
    Law("the square of the number of processes", "processes", lambda update: float(update.processes**2)),
    Law("1 / the square of the number of processes", "processes", lambda update: 1 / update.processes**2),
)


def laws(updates: Sequence[Update]) -> dict[tuple[int, int], Law]:
    """What the weight of each optimiser's terms follows, by optimiser and slot; what nothing simple fits is not there.

    Laws with the constant 1 come first, also where only the usual updates follow them, not those with a short last
    batch; then the simplest.
    """
    found = {}
    for optimizer in dict.fromkeys(update.key[0] for update in updates):
        read = [(update, scales(update)) for update in updates if update.key[0] == optimizer]
        if any(weights is None for _, weights in read):
            continue
        for slot in range(max(len(weights or ()) for _, weights in read)):
            points = [(update, weights[slot]) for update, weights in read if weights and slot < len(weights)]
            one = _fit(points, summed=_summed(points[0][0], slot))
            if one is not None:
                found[optimizer, slot] = one
    return found


def law(updates: Sequence[Update]) -> Law | None:
    """What the weight of a loss's first term follows; where optimisers differ the first law that is no constant."""
    found = [one for (_, slot), one in laws(updates).items() if slot == 0]
    return next((one for one in found if one.kind != "one"), next(iter(found), None))


def _fit(points: Points, *, summed: bool) -> Law | None:
    found = [*_fits(points, summed), *_fits(_usual(points), summed)]
    exact = next((one for one in found if _near(one.constant, 1.0)), None)
    plain = next((one for one in found if one.kind == "one"), None)
    sums = next((one for one in found if one.kind == "samples"), None)
    if exact is None and summed and sums is not None:
        return plain if plain is not None and rounder(plain.constant, sums.constant) else sums
    return exact or next(iter(found), None)


def _fits(points: Points, summed: bool) -> list[Law]:
    """The laws that all points follow, in the order of `LAWS`, with their constants.

    One that does not vary over them is a constant, unless something else shows it: the reduction itself the number of
    processes, a sum the samples.
    """
    found = []
    for one in LAWS:
        values = [one.factor(update) for update, _ in points]
        if not all(values):  # no sizes of batches are known
            continue
        if one.kind in ("processes", "batches") and min(values) == max(values):
            shown = [reduction(update) for update, _ in points]
            if one.kind == "batches" or not all(map(_near, shown, values)) or _near(values[0], 1.0):
                continue
        if one.kind == "samples" and min(values) == max(values) and not summed:
            continue
        constants = [weight / value for (_, weight), value in zip(points, values, strict=True)]
        middle = float(numpy.median(constants))
        if all(_near(constant, middle) for constant in constants):
            found.append(replace(one, constant=middle))
    return found


def _near(one: float, other: float) -> bool:
    return close(one, other, _EQUAL)


def _usual(points: Points) -> Points:
    """The updates of each run with as many samples as most have; all where no number is that of most."""
    kept: list[tuple[Update, float]] = []
    for run in dict.fromkeys(id(update.run) for update, _ in points):
        own = [(update, weight) for update, weight in points if id(update.run) == run]
        samples, times_ = Counter(update.samples for update, _ in own).most_common(1)[0]
        if 2 * times_ <= len(own):
            return points
        kept += [(update, weight) for update, weight in own if update.samples == samples]
    return kept


def _summed(update: Update, slot: int) -> bool:
    """Whether a term of the loss is a sum over its units."""
    terms = update.shares[0].terms or []
    return any(term.how == "sum" for batch in terms for term in batch if term.slot == slot)


def own(weights: Sequence[float]) -> str:
    """What the terms of a loss weigh of themselves, to be added to a sentence; nothing where they weigh 1 together."""
    if close(sum(weights), 1.0, _EQUAL):
        return ""
    if len(weights) == 1:
        return f", the loss's own factor {weights[0]:.3g}"
    said = list(dict.fromkeys(f"{weight:.3g}" for weight in sorted(weights, reverse=True)))
    named = f"{said[0]} each" if len(said) == 1 else numbers(said) if len(weights) <= 4 else f"{said[-1]} to {said[0]}"
    return f", its {len(weights)} terms weigh {named}"


def usable(training: Training) -> list[Update]:
    """The updates with finite numbers."""
    return [update for update in training.all_updates if update.finite]


def spans(update: Update) -> bool:
    """Whether an update holds batches of two passes over the data."""
    for share in update.shares:
        passes = set()
        for group in share.batches:
            batch = group[0].get("batch")
            if batch is not None:
                passes.add(share.rank.events[batch].get("of"))
        if len(passes) > 1:
            return True
    return False
