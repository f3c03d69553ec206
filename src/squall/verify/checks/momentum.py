"""Momentum: does it keep its size when the rate changes?

Two forms are the same at a constant rate (Goyal et al. 2017, Remark 2). With the rate outside, ``u = m u + g``,
``w = w - rate u``; with the rate inside, ``v = m v + rate g``, ``w = w - v``, and then the buffer has the old rate's
size after a change, unless it is multiplied by new / old. Weights before and after tell which one it was.
"""

from __future__ import annotations

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


def _fit(training: Training, rank: Rank, optimizer: int, said: str) -> Finding | None:
    steps = [step for step in rank.steps if step["optimizer"] == optimizer]
    changes = [
        place
        for place in range(2, len(steps))
        if not close(_rate(steps[place]), _rate(steps[place - 1]), 1e-9) and _rate(steps[place - 1])
    ]
    outside, inside = [], []
    for place in changes[:_LATER]:
        found = _errors(rank, steps[place - 1], steps[place])
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


def _errors(rank: Rank, before: Event, after: Event) -> tuple[float, float] | None:
    """How badly an update fits either form, given the one before: relative differences."""
    value = float(after["groups"][0].get("momentum") or 0.0)
    decay = float(after["groups"][0].get("weight_decay") or 0.0)
    old, new = _rate(before), _rate(after)
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
    if not moved or not old:
        return None
    delta, previous, gradient = (numpy.concatenate(one) for one in (moved, last, gradients))
    size = float(numpy.linalg.norm(delta)) or 1.0
    outside = new * (value * previous / old + gradient)
    inside = value * previous + new * gradient
    return (
        float(numpy.linalg.norm(delta - outside)) / size,
        float(numpy.linalg.norm(delta - inside)) / size,
    )
