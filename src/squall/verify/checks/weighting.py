"""Loss weighting: does each sample, or token, weigh the same in its update?

The weight of one unit is the factor with which it enters its rank's loss, times what the reduction makes of it. A mean
of means is right only where all means are over equally many.
"""

from __future__ import annotations

from dataclasses import dataclass

from squall.verify.checks.training import Training, count
from squall.verify.finding import Finding
from squall.verify.update import Update

_EQUAL = 2e-3


@dataclass(frozen=True)
class Spread:
    """The lightest and the heaviest unit of an update: weight, rank, units of its batch."""

    update: Update
    light: tuple[float, int, float]
    heavy: tuple[float, int, float]
    weighted: bool

    @property
    def ratio(self) -> float:
        """How much more the heaviest weighs."""
        return self.heavy[0] / self.light[0] if self.light[0] else float("inf")


def spread(update: Update) -> Spread | None:
    """The most unequal term of an update; None where a loss could not be read."""
    slots: dict[int, list[tuple[float, int, float]]] = {}
    weighted = False
    for share, one in zip(update.shares, update.matches, strict=True):
        if share.terms is None:
            return None
        for batch in share.terms:
            for term in batch:
                slots.setdefault(term.slot, []).append((abs(one.ratio * term.unit), share.rank.number, term.units))
                weighted = weighted or term.weighted
    spreads = [Spread(update, min(units), max(units), weighted) for units in slots.values() if max(units)[0] > 0]
    return max(spreads, key=lambda found: found.ratio, default=None)


def weighting(training: Training) -> Finding:
    """Does each sample, or token, weigh the same where ranks hold unequal numbers of them?"""
    updates = [update for update in training.all_updates if update.finite and update.reduced]
    spreads = [found for update in updates if (found := spread(update)) is not None]
    if not spreads:
        return Finding(
            check="loss weighting", outcome="--", says="how the loss is made of its samples could not be read"
        )
    unequal = [found for found in spreads if found.ratio > 1 + _EQUAL]
    if not unequal:
        sizes = {found.light[2] for found in spreads}
        least = min(sizes)
        return Finding(
            check="loss weighting",
            outcome="ok",
            says=f"all weigh alike in {count(len(spreads), 'update')}, in the last ones too ({least:,.0f} each)",
        )
    worst = max(unequal, key=lambda found: found.ratio)
    if all(found.weighted for found in unequal):
        return Finding(
            check="loss weighting",
            outcome="note",
            says=f"class weights are divided by each rank's own sum of them: up to {worst.ratio:.3g} times apart",
            place=training.place(worst.update.shares[0].backwards[-1]),
        )
    return _fail(training, worst, len(unequal), len(spreads))


def _fail(training: Training, worst: Spread, unequal: int, total: int) -> Finding:
    update, light, heavy = worst.update, worst.light, worst.heavy
    across = light[1] != heavy[1]
    where = "ranks" if across else "the batches of an update"
    return Finding(
        check="loss weighting",
        outcome="FAIL",
        says=f"a mean of means over unequal counts: {worst.ratio:.3g} times apart, in {unequal} of {total} updates",
        place=training.place(update.shares[0].backwards[-1]),
        expected="every sample (or token) of an update weighs the same",
        found=f"at update {update.number} with {update.processes} processes: 1/{1 / heavy[0]:,.0f} where a batch held "
        f"{heavy[2]:,.0f}, 1/{1 / light[0]:,.0f} where it held {light[2]:,.0f}",
        effect="what shares a batch with little counts more; with tokens in every update, with a short last batch in "
        "one an epoch. The loss that is printed is off by the same",
        change="sum instead of mean, divided by the count over all "
        + ("ranks (all-reduce it) and multiplied by the number of ranks, since DDP takes a mean" if across else where),
    )
