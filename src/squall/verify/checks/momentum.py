"""Momentum: does it keep its size when the rate changes?

Two forms are the same at a constant rate (Goyal et al. 2017, Remark 2). With the rate outside, ``u = m u + g``,
``w = w - rate u``; with the rate inside, ``v = m v + rate g``, ``w = w - v``, and then the buffer has the old rate's
size after a change, unless it is multiplied by new / old. Weights before and after tell which one it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy

from squall.verify.checks.training import Training, times
from squall.verify.finding import Finding
from squall.verify.trace import Array, Event, Rank, rate_of
from squall.verify.update import close

_FITS = 1e-3
_FEW = 3  # values that are named one by one
_LARGEST = 4  # changes of the rate that are looked at
_MATTERS = 1.1  # a smaller change needs no correction (Detectron's SCALE_MOMENTUM_THRESHOLD)


def momentum(training: Training) -> Finding:
    """Does the momentum keep its size when the rate changes?"""
    rank = training.runs[0].first
    kinds = {event["optimizer"]: (event["kind"], event["module"]) for event in rank.of("optimizer")}
    own = [number for number, (_, module) in kinds.items() if not module.startswith(("torch.", "squall."))]
    values = sorted(
        {float(group["momentum"]) for step in rank.steps for group in step["groups"] if group.get("momentum")}
    )
    if not values and own:
        return _unnamed(training, rank, own[0])
    if not values:
        return Finding(check="momentum", outcome="--", says="none, or in an optimiser that scales its updates itself")
    said = " and ".join(f"{value:.3g}" for value in values)
    if len(values) > _FEW:
        said = f"{values[0]:.3g} to {values[-1]:.3g}"
    for number in own:
        finding = _fit(training, rank, number, said)
        if finding is not None:
            return finding
    if own:
        return Finding(check="momentum", outcome="--", says=f"{said}, at a rate that did not change")
    return Finding(check="momentum", outcome="ok", says=f"{said}, free of the rate, as in torch.optim")


def _fit(training: Training, rank: Rank, optimizer: int, said: str, value: float | None = None) -> Finding | None:
    steps = [step for step in rank.steps if step["optimizer"] == optimizer]
    changes = [place for place in range(2, len(steps)) if _change(steps, place) > 1 + 1e-9]
    jumps = [place for place in changes if _is_jump(steps, place)]
    largest = sorted(jumps or changes, key=lambda place: -_change(steps, place))[:_LARGEST]
    outside, inside = [], []
    for place in largest:
        found = _errors(rank, steps[place - 1], steps[place], value)
        if found is not None:
            outside.append(found[0])
            inside.append(found[1])
    if not outside:
        return None
    fits = max(outside) < _FITS, max(inside) < _FITS
    if fits == (True, True):
        return Finding(check="momentum", outcome="--", says=f"{said}, at a rate that hardly changes: no form shows")
    if fits == (True, False):
        return Finding(check="momentum", outcome="ok", says=f"{said}, keeps its size when the rate changes")
    if fits == (False, False):
        return Finding(check="momentum", outcome="--", says=f"{said}, in a form that is neither of the two")
    place = largest[0]
    before, after = rate_of(steps[place - 1]), rate_of(steps[place])
    if not jumps:
        return Finding(
            check="momentum",
            outcome="note",
            says=f"{said}, the rate inside the buffer, uncorrected: it lags behind a rate that moves smoothly, by "
            f"{times(before / after)} an update at most",
            place=training.place(steps[place]),
        )
    return Finding(
        check="momentum",
        outcome="FAIL",
        says=f"the rate lies inside the buffer, uncorrected: wrong by {times(before / after)} after the largest change",
        place=training.place(steps[place]),
        expected="w = w - rate x u with u = m u + g; or v = m v x (new / old rate) + rate x g",
        found=f"v = m v + rate x g: when the rate went from {before:g} to {after:g} at update {place}, the buffer kept "
        "the old size",
        effect=f"for some 1 / (1 - m) updates the old steps go on, {times(before / after)} of what they should be: "
        + ("they overshoot" if before > after else "the momentum is too small"),
        change="multiply the buffer by new / old rate where the rate changes, or keep the rate out of it",
        known=("Goyal et al. 2017, Remark 2",),
    )


def _is_jump(steps: Sequence[Event], place: int) -> bool:
    """Whether the rate is another, and stays so: not on its way, as in a warm-up or along a cosine."""
    beside = [other for other in (place - 1, place + 1) if 0 < other < len(steps)]
    return _change(steps, place) > _MATTERS and all(_change(steps, other) <= _MATTERS for other in beside)


def _change(steps: Sequence[Event], place: int) -> float:
    """By what factor the rate went up or down before an update; 1 where it came from zero or went there."""
    before, after = rate_of(steps[place - 1]), rate_of(steps[place])
    return max(before / after, after / before) if before > 0 and after > 0 else 1.0


def _unnamed(training: Training, rank: Rank, optimizer: int) -> Finding:
    """An optimiser of the user's own whose groups name no momentum: it is fitted to two updates at one rate."""
    steps = [step for step in rank.steps if step["optimizer"] == optimizer]
    for before, after in pairwise(steps[1:]):
        if close(rate_of(before), rate_of(after), 1e-9) and rate_of(after):
            value = _fitted(rank, before, after)
            found = None if value is None else _errors(rank, before, after, value)
            if value is not None and found is not None and 0.05 < value < 1 and found[0] < _FITS:
                return _fit(training, rank, optimizer, f"{value:.3g}", value) or Finding(
                    check="momentum", outcome="--", says=f"{value:.3g}, at a rate that did not change"
                )
    return Finding(check="momentum", outcome="--", says="none that could be found in an optimiser of its own")


def _fitted(rank: Rank, before: Event, after: Event) -> float | None:
    """The momentum that explains an update best, given the one before at the same rate."""
    moves = _moves(rank, before, after)
    if moves is None:
        return None
    delta, previous, gradient = moves
    square = float(numpy.dot(previous, previous))
    return float(numpy.dot(delta - rate_of(after) * gradient, previous)) / square if square else None


def _errors(rank: Rank, before: Event, after: Event, given: float | None = None) -> tuple[float, float] | None:
    """How badly an update fits either form, given the one before: relative differences."""
    value = float(after["groups"][0].get("momentum") or 0.0) if given is None else given
    old, new = rate_of(before), rate_of(after)
    moves = _moves(rank, before, after)
    if moves is None or not old:
        return None
    delta, previous, gradient = moves
    size = float(numpy.linalg.norm(delta)) or 1.0
    outside = new * (value * previous / old + gradient)
    inside = value * previous + new * gradient
    return (
        float(numpy.linalg.norm(delta - outside)) / size,
        float(numpy.linalg.norm(delta - inside)) / size,
    )


def _moves(rank: Rank, before: Event, after: Event) -> tuple[Array, Array, Array] | None:
    """How far the weights went in an update and in the one before, and the gradient with its decay."""
    decay = float(after["groups"][0].get("weight_decay") or 0.0)
    moved: list[Array] = []
    last: list[Array] = []
    gradients: list[Array] = []
    for index in after["from"]:
        arrays = [
            rank.array(step, f"{name}.{index}") for step in (before, after) for name in ("before", "after", "grad")
        ]
        if any(one is None for one in arrays):
            continue
        first, second, _, third, fourth, gradient = (one for one in arrays if one is not None)
        last.append(first - second)
        moved.append(third - fourth)
        gradients.append(gradient + decay * third)
    if not moved:
        return None
    return numpy.concatenate(moved), numpy.concatenate(last), numpy.concatenate(gradients)
