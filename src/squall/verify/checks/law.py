"""What the weight of a mean follows: the number of processes, the batches of an update, the loss scale, the samples.

The weight with which a mean over the samples enters an update must be 1. Where it is another number, the runs tell what
it follows. A constant is the user's own factor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy

from squall.verify.checks.training import Training
from squall.verify.update import Update, close


@dataclass(frozen=True)
class Law:
    """What the weight of a mean follows: `factor` of an update, `name` in words, times a constant."""

    name: str
    kind: str  # "one", "processes", "batches", "scale", "samples"
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


def law(training: Training, updates: Sequence[Update], slot: int = 0) -> Law | None:
    """What the weight of the term in a slot follows over updates; None where nothing simple fits.

    Laws with the constant 1 come first, then the simplest: with one number of processes a factor of 2 may be that
    number or the user's own, and is not taken for the former unless the reduction itself shows it.
    """
    found = []
    for one in LAWS:
        constants = []
        for update in updates:
            scales = update.scales
            if scales is None or slot >= len(scales):
                return None
            factor = one.factor(update)
            constants.append(scales[slot] / factor if factor else numpy.nan)  # no sizes of batches are known
        middle = float(numpy.median(constants))
        if all(close(constant, middle, 2e-3) for constant in constants):
            found.append(Law(one.name, one.kind, one.factor, middle))
    exact = [one for one in found if close(one.constant, 1.0, 2e-3)]
    plain = next((one for one in found if one.kind == "one"), None)
    if exact and exact[0].kind == "processes" and plain is not None:  # one number of processes
        ratio = updates[0].ratio * updates[0].processes * updates[0].scaling
        if close(ratio, 1.0, 2e-3) and not by_processes(updates[0]):
            return plain
    return exact[0] if exact else next(iter(found), None)


def by_processes(update: Update) -> bool:
    """Whether the loss was multiplied or divided by the number of processes on its way."""
    terms = update.shares[0].terms or [[]]
    wanted = (float(update.processes), 1 / update.processes)
    return any(close(constant, one, 1e-4) for term in terms[0] for constant in term.constants for one in wanted)


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
