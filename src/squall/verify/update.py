"""One update, put together from what all ranks saw: was what they applied made of what they computed?

Each rank's own gradients of an update, summed, are the reference: nothing of them has gone through a reduction, a
scaler or a clip. What the optimiser was given is held against that sum, element by element in float64::

    applied = ratio x (sum of all ranks' own gradients)      ratio 1/P under DDP: a mean over ranks

With the factor by which each term enters each rank's loss follows the weight with which a mean over the samples enters
the update (`checks/mixing.py`): 1 where the update is the gradient of that mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy

from squall.verify.trace import Array, Event, Rank, Run

TOLERANCE = 1e-4
"""Relative difference up to which float32 arithmetic explains what was found."""

_SUMS = {"float32": 50 * TOLERANCE, "float64": 50 * TOLERANCE}
_SUMS_OF_HALF = 5e-2  # of gradients in float16 or bfloat16, which are added up in it over batches and ranks


@dataclass(frozen=True)
class Term:
    """One term of the loss of one backward pass.

    Attributes:
        slot: which term of its batch it is, counted from 0 over all backward passes of the batch.
        weight: with which a mean over its units enters the loss: the factor of a mean, factor x units of a sum. It has
            no sign: a loss may be minus the mean of something, or the mean of minus that.
        unit: the weight of one unit (a sample, a token, an output).
        units: how many.
        node, of: the kind of node that it is, and what that adds up: "MeanBackward0" of "Pow".
        constants: what it was multiplied by; `divisors`: what it was divided by, which is among them as 1 / divisor.
    """

    slot: int
    weight: float
    unit: float
    units: float
    how: str
    node: str
    of: str
    constants: tuple[float, ...]
    divisors: tuple[float, ...]
    weighted: bool


@dataclass(frozen=True)
class Share:
    """What one rank put into an update."""

    rank: Rank
    step: Event
    backwards: Sequence[Event]
    clip: Event | None

    @cached_property
    def batches(self) -> list[list[Event]]:
        """The backward passes, those of one batch together."""
        found: dict[Any, list[Event]] = {}
        for backward in self.backwards:
            batch = backward.get("batch")
            found.setdefault(batch if batch is not None else ("no batch", backward["n"]), []).append(backward)
        return list(found.values())

    @cached_property
    def samples(self) -> int:
        """How many samples the update's batches held on this rank."""
        sizes = [
            self.rank.events[group[0]["batch"]]["size"] for group in self.batches if group[0].get("batch") is not None
        ]
        return sum(sizes)

    @cached_property
    def terms(self) -> list[list[Term]] | None:
        """The terms of the data, batch by batch; None where a loss could not be read."""
        result = []
        for group in self.batches:
            found: list[Term] = []
            for backward in group:
                slots: dict[int, int] = {}  # of the terms of this backward pass
                for place, term in enumerate(backward.get("terms", ())):
                    if term.get("penalty"):
                        continue
                    units = term.get("units")
                    if term["how"] == "opaque" or term["factor"] is None or not units:
                        return None
                    factor = abs(float(term["factor"]))
                    mean = term["how"] == "mean"
                    total = float(term.get("total") or units)
                    slot = slots[place] = slots.get(term.get("part_of", -1), len(found))
                    if slot < len(found):
                        whole = found[slot]
                        part = factor * term["each"] * (1.0 if mean else whole.units)
                        found[slot] = replace(whole, weight=whole.weight + part)
                        continue
                    found.append(
                        Term(
                            slot=slot,
                            weight=factor if mean else factor * units,
                            unit=factor / total if mean else factor,
                            units=float(units),
                            how=term["how"],
                            node=term.get("node", ""),
                            of=term.get("of", ""),
                            constants=tuple(term["constants"]),
                            divisors=tuple(term.get("divisors", ())),
                            weighted=bool(term.get("weighted")),
                        )
                    )
            result.append(found)
        return result

    @cached_property
    def penalties(self) -> list[list[Event]]:
        """The penalties, batch by batch."""
        return [
            [term for backward in group for term in backward.get("terms", ()) if term.get("penalty") and term["factor"]]
            for group in self.batches
        ]


@dataclass(frozen=True)
class Match:
    """How an applied gradient relates to a reference: ``applied = ratio x reference`` up to `difference`."""

    ratio: float
    difference: float
    worst: int
    """The parameter with the largest difference."""


@dataclass
class Update:
    """One update as all ranks made it."""

    run: Run
    key: tuple[int, int]
    shares: Sequence[Share]
    number: int
    indices: tuple[int, ...] = field(default=())

    @property
    def processes(self) -> int:
        """Of the run."""
        return self.run.processes

    @property
    def step(self) -> Event:
        """Rank 0's."""
        return self.shares[0].step

    @cached_property
    def applied(self) -> list[list[Array]]:
        """What each rank's optimiser was given, or what was about to be clipped: parameter by parameter."""
        return self._of([share.clip or share.step for share in self.shares])

    @cached_property
    def given(self) -> list[list[Array]]:
        """What each rank's optimiser was given."""
        return self._of([share.step for share in self.shares])

    def _of(self, events: Sequence[Event]) -> list[list[Array]]:
        ranks: list[list[Array]] = [[] for _ in self.shares]
        for index in self.indices:
            arrays = self.run.gathered(events, f"grad.{index}")
            for rank, place in zip(ranks, range(len(self.shares)), strict=True):
                rank.append(arrays[place] if arrays is not None else numpy.full(1, numpy.nan))
        return ranks

    @cached_property
    def own(self) -> list[list[Array]]:
        """What each rank computed itself, parameter by parameter."""
        return [
            [
                share.rank.arrays[f"{share.step['n']}.local.{index}"]
                if share.backwards
                else numpy.zeros_like(share.rank.arrays[f"{share.step['n']}.grad.{index}"])
                for index in self.indices
            ]
            for share in self.shares
        ]

    @cached_property
    def total(self) -> list[Array]:
        """The sum of all ranks' own gradients."""
        return [numpy.sum([rank[place] for rank in self.own], axis=0) for place in range(len(self.indices))]

    @cached_property
    def finite(self) -> bool:
        """Whether all numbers are."""
        return all(
            bool(numpy.isfinite(one).all()) for one in (*self.total, *(a for rank in self.applied for a in rank))
        )

    @cached_property
    def matches(self) -> list[Match]:
        """Each rank's applied gradient against the sum over ranks."""
        return [match(applied, self.total, self.indices) for applied in self.applied]

    @cached_property
    def alone(self) -> list[Match]:
        """Each rank's applied gradient against what it computed itself."""
        return [match(applied, own, self.indices) for applied, own in zip(self.applied, self.own, strict=True)]

    @cached_property
    def reduced(self) -> bool:
        """Whether what was applied is a multiple of the sum over ranks, the same on all."""
        ratios = [one.ratio for one in self.matches]
        return all(one.difference < self.tolerance for one in self.matches) and close(min(ratios), max(ratios), 1e-3)

    @property
    def tolerance(self) -> float:
        """The relative difference that adding up gradients explains, in the number format that they have."""
        return _SUMS.get(self.step.get("format", "float32"), _SUMS_OF_HALF)

    @cached_property
    def ratio(self) -> float:
        """Applied over the sum of all ranks."""
        return float(numpy.median([one.ratio for one in self.matches]))

    @cached_property
    def window(self) -> int:
        """How many batches each rank put in; the most of any."""
        return max(len(share.batches) for share in self.shares)

    @cached_property
    def samples(self) -> int:
        """How many samples the update was made of."""
        return sum(share.samples for share in self.shares)

    @cached_property
    def scaling(self) -> float:
        """The loss scale that entered; 1 without."""
        rank, passes = self.shares[0].rank, self.shares[0].backwards
        if not passes:
            return 1.0
        before = max((step["n"] for step in rank.steps if step["n"] < passes[0]["n"]), default=-1)
        scales = [
            float(event["scale"])
            for event in rank.of("scaler")
            if event["what"] == "scale" and before < event["n"] < passes[-1]["n"]
        ]
        return scales[-1] if scales else 1.0


def updates(run: Run) -> list[Update]:
    """The updates that all ranks made, in order."""
    found = []
    for number, (key, steps) in enumerate(run.whole()):
        shares = [
            Share(rank, step, rank.contributing(step), _clip(rank, step))
            for rank, step in zip(run.ranks, steps, strict=True)
        ]
        if not shares[0].backwards or any(
            not share.backwards and not run.first.about.get("lockstep")
            for share in shares  # Squall's may have none
        ):
            continue
        names = [int(index) for index in shares[0].step["from"]]
        held = [
            index
            for index in names
            if all(
                (f"{share.step['n']}.local.{index}" in share.rank.arrays or not share.backwards)
                and f"{share.step['n']}.grad.{index}" in share.rank.arrays
                and (share.clip is None or f"{share.clip['n']}.grad.{index}" in share.rank.arrays)
                for share in shares
            )
        ]
        if held:
            found.append(Update(run, key, shares, number, tuple(held)))
    return found


def _clip(rank: Rank, step: Event) -> Event | None:
    """The clipping of an update: the first between its last backward pass and it that covers its parameters."""
    backwards = rank.contributing(step)
    if not backwards:
        return None
    for event in rank.of("clip"):
        between = backwards[-1]["n"] < event["n"] < step["n"]
        if between and {int(index) for index in step["from"]} <= set(event["parameters"]):
            return event
    return None


def match(applied: Sequence[Array], reference: Sequence[Array], indices: Sequence[int]) -> Match:
    """The ratio that fits best, and the largest difference of any parameter from it, relative to what matters there."""
    with numpy.errstate(all="ignore"):
        square = sum(float(numpy.dot(one, one)) for one in reference)
        product = sum(float(numpy.dot(one, other)) for one, other in zip(applied, reference, strict=True))
        if not square or not numpy.isfinite(square) or not numpy.isfinite(product):
            return Match(numpy.nan, numpy.nan, indices[0])
        ratio = product / square
        floor = 1e-3 * abs(ratio) * numpy.sqrt(square / max(1, sum(len(one) for one in reference)))
        worst, found = -1.0, indices[0]
        for index, one, other in zip(indices, applied, reference, strict=True):
            size = max(abs(ratio) * float(numpy.linalg.norm(other)), floor * numpy.sqrt(len(other)))
            difference = float(numpy.linalg.norm(one - ratio * other))
            relative = difference / size if size else (0.0 if not difference else numpy.inf)
            if relative > worst:
                worst, found = relative, index
    return Match(float(ratio), worst, found)


def close(one: float, other: float, tolerance: float = 1e-3) -> bool:
    """Whether two numbers are equal up to a relative difference."""
    return abs(one - other) <= tolerance * max(abs(one), abs(other))


def alike(ranks: Sequence[Sequence[Array]]) -> bool:
    """Whether all ranks have the same gradients, parameter by parameter, as far as float32 goes."""
    return all(
        numpy.allclose(one, other, rtol=TOLERANCE, atol=1e-12)
        for rank in ranks[1:]
        for one, other in zip(ranks[0], rank, strict=True)
    )
