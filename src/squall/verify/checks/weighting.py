"""Loss weighting: does each sample, or token, weigh the same in its update?

The weight of one unit is the factor with which it enters its rank's loss, times what the reduction makes of it. A mean
of means is right only where all means are over equally many: then batches, or ranks, weigh the same all in all, and
their units do not. Units that differ in any other way do so by factors of the loss's own: tasks, advantages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from squall.verify.checks.mixing import factors
from squall.verify.checks.training import Training, count
from squall.verify.finding import Finding
from squall.verify.update import Update, close

_EQUAL = 2e-3


@dataclass(frozen=True, order=True)
class Part:
    """What a term counts in one batch, or on one rank: the weight of one unit of it, and how many they are."""

    weight: float
    rank: int
    units: float


@dataclass(frozen=True)
class Spread:
    """The lightest and the heaviest unit of a term in an update, and whether that comes of a mean of means."""

    update: Update
    light: Part
    heavy: Part
    weighted: bool
    means: bool

    @property
    def ratio(self) -> float:
        """How much more the heaviest weighs."""
        return self.heavy.weight / self.light.weight


def spreads(update: Update) -> list[Spread] | None:
    """How unequal the units of each term are; None where a loss could not be read, or ranks do not apply the same.

    A term is known by its place and the kind of node that it is: ranks may have other losses. One that weighs nothing
    is none.
    """
    mixed = factors(update)
    if mixed is None:
        return None
    found: dict[tuple[int, str], list[Part]] = {}
    weighted = set()
    for share, factor in zip(update.shares, mixed, strict=True):
        if share.terms is None:
            return None
        for term in (term for batch in share.terms for term in batch if factor * term.unit):
            key = term.slot, term.node
            found.setdefault(key, []).append(Part(abs(factor * term.unit), share.rank.number, term.units))
            if term.weighted:
                weighted.add(key)
    return [
        Spread(update, min(parts), max(parts), key in weighted, _is_mean_of_means(parts))
        for key, parts in found.items()
    ]


def _is_mean_of_means(parts: Sequence[Part]) -> bool:
    """Whether batches, or ranks, of unequally many units weigh the same all in all."""
    return _unequal_means(min(parts), max(parts)) or _unequal_means(*_extremes(parts))


def _unequal_means(light: Part, heavy: Part) -> bool:
    return light.units != heavy.units and close(light.weight * light.units, heavy.weight * heavy.units, _EQUAL)


def _extremes(parts: Sequence[Part]) -> tuple[Part, Part]:
    """The ranks whose units weigh least and most, with all their batches."""
    ranks = []
    for rank in {part.rank for part in parts}:
        own = [part for part in parts if part.rank == rank]
        units = sum(part.units for part in own)
        ranks.append(Part(sum(part.weight * part.units for part in own) / units, rank, units))
    return min(ranks), max(ranks)


def weighting(training: Training) -> Finding:
    """Does each sample, or token, weigh the same where ranks hold unequal numbers of them?"""
    read = [found for update in training.all_updates if update.finite and (found := spreads(update))]
    if not read:
        return Finding(
            check="loss weighting", outcome="--", says="how the loss is made of its samples could not be read"
        )
    worst = [max(found, key=lambda one: one.ratio) for found in read]
    unequal = [one for one in worst if one.ratio > 1 + _EQUAL]
    if not unequal:
        held = [part.units for one in worst for part in (one.light, one.heavy)]
        sizes = f"{min(held):,.0f}" + (f" to {max(held):,.0f}" if max(held) > min(held) else "")
        return Finding(
            check="loss weighting",
            outcome="ok",
            says=f"all weigh alike in {count(len(read), 'update')}, of batches of {sizes}",
        )
    means = [one for found in read for one in found if one.means and not one.weighted and one.ratio > 1 + _EQUAL]
    if means:
        updates = {id(one.update) for one in means}
        return _fail(training, max(means, key=lambda one: one.ratio), len(updates), len(read))
    one = max(unequal, key=lambda one: one.ratio)
    by_class = all(one.weighted for one in unequal)
    return Finding(
        check="loss weighting",
        outcome="note",
        says=f"class weights are divided by each rank's own sum of them: up to {one.ratio:.3g} times apart"
        if by_class
        else f"up to {one.ratio:.3g} times apart in {len(unequal)} of {count(len(read), 'update')}: by factors in the "
        "loss, not by how many a batch holds",
        place=training.place(one.update.shares[0].backwards[-1]),
    )


def _fail(training: Training, worst: Spread, unequal: int, total: int) -> Finding:
    update, light, heavy = worst.update, worst.light, worst.heavy
    across = light.rank != heavy.rank
    where = "ranks" if across else "the batches of an update"
    return Finding(
        check="loss weighting",
        outcome="FAIL",
        says=f"a mean of means over unequal counts: {worst.ratio:.3g} times apart, in {unequal} of {total} updates",
        place=training.place(update.shares[0].backwards[-1]),
        expected="every sample (or token) of an update weighs the same",
        found=f"at update {update.number} with {count(update.processes, 'process')}: 1/{1 / heavy.weight:,.0f} where a "
        f"batch held {heavy.units:,.0f}, 1/{1 / light.weight:,.0f} where it held {light.units:,.0f}",
        effect="what shares a batch with little counts more; with tokens in every update, with a short last batch in "
        "one an epoch. The loss that is printed is off by the same",
        change="sum instead of mean, divided by the count over all "
        + ("ranks (all-reduce it) and multiplied by the number of ranks, since DDP takes a mean" if across else where),
        known=("transformers#34191", "pytorch#42577"),
    )
