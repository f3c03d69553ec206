"""Momentum: does it keep its size when the rate changes?

Two forms are the same at a constant rate (Goyal et al. 2017, Remark 2). With the rate outside, ``u = m u + g``,
``w = w - rate u``; with the rate inside, ``v = m v + rate g``, ``w = w - v``, and then the buffer has the old rate's
size after a change, unless it is multiplied by new / old. Weights before and after tell which one it was.
"""

from __future__ import annotations

from itertools import pairwise

import numpy

from squall.verify.checks.training import Training, times
from squall.verify.finding import Finding
from squall.verify.trace import Array, Event, Rank
from squall.verify.update import close

_FITS = 1e-3
_LATER = 4  # updates after a change of rate that tell the forms apart


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
    said = " and ".join(f"{value:g}" for value in values)
    for number in own:
        finding = _fit(training, rank, number, said)
        if finding is not None:
            return finding
    if own:
        return Finding(check="momentum", outcome="--", says=f"{said}, at a rate that did not change")
    return Finding(check="momentum", outcome="ok", says=f"{said}, free of the rate, as in torch.optim")


def _fit(training: Training, rank: Rank, optimizer: int, said: str, value: float | None = None) -> Finding | None:
    steps = [step for step in rank.steps if step["optimizer"] == optimizer]
    changes = [
        place
        for place in range(2, len(steps))
        if not close(_rate(steps[place]), _rate(steps[place - 1]), 1e-9) and _rate(steps[place - 1])
    ]
    outside, inside = [], []
    for place in changes[:_LATER]:
        found = _errors(rank, steps[place - 1], steps[place], value)
        if found is not None:
            outside.append(found[0])
            inside.append(found[1])
    if not outside:
        return None
    if max(outside) < _FITS:
        return Finding(check="momentum", outcome="ok", says=f"{said}, keeps its size when the rate changes")
    if max(inside) >= _FITS:
        return Finding(check="momentum", outcome="--", says=f"{said}, in a form that is neither of the two")
    place = changes[0]
    before, after = _rate(steps[place - 1]), _rate(steps[place])
    largest = max(
        (_rate(steps[one - 1]) / _rate(steps[one]) for one in changes if _rate(steps[one])),
        key=lambda one: abs(one - 1),
    )
    return Finding(
        check="momentum",
        outcome="FAIL",
        says=f"the rate lies inside the buffer, uncorrected: wrong by {times(largest)} after the largest change",
        place=training.place(steps[place]),
        expected="w = w - rate x u with u = m u + g; or v = m v x (new / old rate) + rate x g",
        found=f"v = m v + rate x g: when the rate went from {before:g} to {after:g} at update {place}, the buffer kept "
        "the old size",
        effect="after a drop by 10 the old, 10 times larger steps go on for some 1 / (1 - m) updates; in a warm-up the "
        "momentum is too small",
        change="multiply the buffer by new / old rate where the rate changes, or keep the rate out of it",
        known=("Goyal et al. 2017, Remark 2",),
    )


def _rate(step: Event) -> float:
    return float(step["groups"][0]["lr"])


def _unnamed(training: Training, rank: Rank, optimizer: int) -> Finding:
    """An optimiser of the user's own whose groups name no momentum: it is fitted to two updates at one rate."""
    steps = [step for step in rank.steps if step["optimizer"] == optimizer]
    for before, after in pairwise(steps[1:]):
        if close(_rate(before), _rate(after), 1e-9) and _rate(after):
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
    return float(numpy.dot(delta - _rate(after) * gradient, previous)) / square if square else None


def _errors(rank: Rank, before: Event, after: Event, given: float | None = None) -> tuple[float, float] | None:
    """How badly an update fits either form, given the one before: relative differences."""
    value = float(after["groups"][0].get("momentum") or 0.0) if given is None else given
    old, new = _rate(before), _rate(after)
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
