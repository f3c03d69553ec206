"""Weight decay: does it stay what it is when the loss is scaled, summed or accumulated?

Decay in the optimiser belongs to a gradient of size one: with the gradient of a sum over b samples and the rate divided
by b, the loss moves the weights as before and the decay b times less (Goyal et al. 2017, Remark 1). A penalty in the
loss is added up over the batches of an update as the data's terms are, and has to be divided as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from squall.verify.checks.law import law, usable
from squall.verify.checks.mixing import mixture, scales
from squall.verify.checks.training import Training, digits, numbers, rounder
from squall.verify.finding import Finding
from squall.verify.update import Update, close, match

_FITS = 1e-2
_WRITTEN = 3  # digits from which on a rate is more likely to have been computed than written


def weight_decay(training: Training) -> Finding:
    """Does the decay stay what it is when the loss is scaled or summed?"""
    updates = [update for update in usable(training) if update.reduced and scales(update) is not None]
    penalties = [update for update in updates if any(batch for share in update.shares for batch in share.penalties)]
    if penalties:
        return _penalty(training, penalties)
    groups = [group for run in training.runs for step in run.first.steps for group in step["groups"]]
    decays = sorted({float(group["weight_decay"]) for group in groups if group.get("weight_decay")})
    if not decays:
        return Finding(check="weight decay", outcome="--", says="none")
    twice = _twice(training, max(decays))
    if twice is not None:
        return twice
    one = law(updates) if updates else None
    said = numbers([f"{decay:g}" for decay in decays])
    if one is None or one.kind != "samples":
        return Finding(check="weight decay", outcome="ok", says=f"{said}, not scaled with the loss")
    if not _follows_size(updates[0]):
        says = (
            f"{said} beside the gradient of a sum, in an optimiser whose steps are not seen to be in proportion to it"
        )
        return Finding(check="weight decay", outcome="--", says=says)
    return _summed(training, updates[0], said, max(decays), one.factor(updates[0]))


def _twice(training: Training, decay: float) -> Finding | None:
    """Decay that is added to the gradient by hand, and once more by the optimiser."""
    for update in training.all_updates:
        if not update.finite:
            continue
        weights = [update.shares[0].rank.array(update.step, f"before.{index}") for index in update.indices]
        known = [one for one in weights if one is not None]
        if len(known) != len(weights):
            continue
        found = mixture(update.given[0], [update.total, known])
        if found is not None and close(found[1], decay, 5e-2):
            return Finding(
                check="weight decay",
                outcome="FAIL",
                says=f"applied twice: {decay:g} in the optimiser, and {found[1]:.3g} x the weights in the gradients",
                place=training.place(update.step),
                expected=f"{decay:g}, once",
                found=f"at update {update.number} the gradients are the reduced ones and {found[1]:.3g} x the weights",
                effect="twice the decay that the recipe names",
                change="leave it to the optimiser, or give it weight_decay=0",
            )
    return None


def _follows_size(update: Update) -> bool:
    """Whether the first update goes by the gradient with its decay, times the rate: as SGD does, and no Adam."""
    moved, wanted, indices = [], [], []
    steps = [share.step for share in update.shares]
    for index, applied in zip(update.indices, update.given[0], strict=True):
        before, after = (update.run.gathered(steps, f"{name}.{index}") for name in ("before", "after"))
        group = update.step["groups"][update.step["group_of"][str(index)]]
        if before is None or after is None or "lr" not in group:
            return False
        moved.append(before[0] - after[0])
        wanted.append(float(group["lr"]) * (applied + float(group.get("weight_decay") or 0.0) * before[0]))
        indices.append(index)
    return match(moved, wanted, indices).difference < _FITS


def _summed(training: Training, update: Update, said: str, decay: float, samples: float) -> Finding:
    """Beside the gradient of a sum; it is wrong where the rate is no number that a person writes, but for the sum."""
    rate = float(update.step["groups"][0].get("initial_lr", update.step["groups"][0]["lr"]))
    place = training.place(update.step)
    if digits(rate) < _WRITTEN or not rounder(rate * samples, rate):
        return Finding(
            check="weight decay",
            outcome="note",
            says=f"{said} beside the gradient of a sum over {samples:g} samples: it changes with the batch",
            place=place,
        )
    return Finding(
        check="weight decay",
        outcome="FAIL",
        says=f"acts {samples:g} times too weakly: {said} beside the gradient of a sum, the rate divided by {samples:g}",
        place=place,
        expected=f"decay {said} beside the gradient of a mean at the rate {rate * samples:g}",
        found=f"the loss is a sum over {samples:g} samples of each rank and the rate {rate:.4g} = {rate * samples:g} / "
        f"{samples:g}: that divides the decay too",
        effect=f"as if the decay were {decay / samples:.2g}: nearly none",
        change="divide the loss by its count instead of the rate",
        known=("Goyal et al. 2017, Remark 1",),
    )


def _penalty(training: Training, updates: Sequence[Update]) -> Finding:
    many = [update for update in updates if update.window > 1]
    for update in many:
        found = _undivided(update)
        if found is None:
            continue
        single, counted = found
        total = single * counted
        data = update.shares[0].terms or [[]]
        if rounder(total, single) or (data[0] and close(data[0][0].weight, single)):
            return Finding(
                check="weight decay",
                outcome="note",
                says=f"a penalty of {single:.3g} in each of {update.window} batches: {total:.3g} an update",
                place=training.place(update.shares[0].backwards[-1]),
            )
        return Finding(
            check="weight decay",
            outcome="FAIL",
            says=f"the penalty counts {counted:.4g} times: {single:.3g} in each of {update.window} batches",
            place=training.place(update.shares[0].backwards[-1]),
            expected=f"{single:.3g} an update: divided by the batches of it, as the loss is",
            found=f"the loss is divided by {update.window}, the penalty is not: {total:.3g} an update",
            effect=f"{counted:.4g} times the decay that the recipe names",
            change=f"divide the sum of both by {update.window}",
        )
    first = updates[0]
    return Finding(
        check="weight decay",
        outcome="ok",
        says=f"a penalty in the loss, {_size(first):.3g} an update, scaled as the loss is",
    )


def _size(update: Update) -> float:
    """The factor of a penalty in an update: summed over its batches, the mean over ranks."""
    factors = [
        batch[0]["factor"] * one.ratio
        for share, one in zip(update.shares, update.matches, strict=True)
        for batch in share.penalties
        if batch and batch[0]["factor"] is not None
    ]
    return float(sum(factors))


def _undivided(update: Update) -> tuple[float, float] | None:
    """The penalty's factor in one batch and how often it counts, where the data's terms are divided and it is not."""
    share = update.shares[0]
    terms, penalties = share.terms, [batch[0] for batch in share.penalties if batch]
    if not terms or not terms[0] or len(penalties) < 2 or penalties[0]["factor"] is None:
        return None
    wanted = 1 / update.window
    divided = any(close(constant, wanted, 1e-4) for constant in terms[0][0].constants)
    too = any(close(constant, wanted, 1e-4) for constant in penalties[0]["constants"])
    single = float(penalties[0]["factor"]) / update.scaling
    counted = _size(update) / single if single else 1.0
    return (single, counted) if divided and not too and counted > 1.5 else None
