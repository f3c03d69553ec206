"""Weight decay: does it stay what it is when the loss is scaled, summed or accumulated?

Decay in the optimiser belongs to a gradient of size one: with the gradient of a sum over b samples and the rate divided
by b, the loss moves the weights as before and the decay b times less (Goyal et al. 2017, Remark 1). A penalty in the
loss is added up over the batches of an update as the data's terms are, and has to be divided as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from squall.verify.checks.clipping import mixture
from squall.verify.checks.law import law, usable
from squall.verify.checks.training import Training, rounder, times
from squall.verify.finding import Finding
from squall.verify.update import Update, close


def weight_decay(training: Training) -> Finding:
    """Does the decay stay what it is when the loss is scaled or summed?"""
    updates = [update for update in usable(training) if update.reduced and update.scales is not None]
    penalties = [update for update in updates if any(batch for share in update.shares for batch in share.penalties)]
    if penalties:
        return _penalty(training, penalties)
    groups = [group for run in training.runs for step in run.first.steps for group in step["groups"]]
    decays = sorted({float(group.get("weight_decay") or 0.0) for group in groups})
    if not any(decays):
        return Finding(check="weight decay", outcome="--", says="none")
    twice = _twice(training, max(decays))
    if twice is not None:
        return twice
    one = law(training, updates) if updates else None
    said = " and ".join(f"{decay:g}" for decay in decays)
    if one is not None and one.kind == "samples":
        return _summed(training, updates[0], said, one.factor(updates[0]))
    return Finding(check="weight decay", outcome="ok", says=f"{said}, not scaled with the loss")


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


def _summed(training: Training, update: Update, said: str, samples: float) -> Finding:
    rate = float(update.step["groups"][0].get("initial_lr", update.step["groups"][0]["lr"]))
    place = training.place(update.step)
    if not rounder(rate * samples, rate):
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
        effect=f"as if the decay were {float(said.split()[0]) / samples:.2g}: nearly none",
        change="divide the loss by its count instead of the rate",
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
            says=f"the penalty counts {times(counted)[2:]} times: {single:.3g} in each of {update.window} batches",
            place=training.place(update.shares[0].backwards[-1]),
            expected=f"{single:.3g} an update: divided by the batches of it, as the loss is",
            found=f"the loss is divided by {update.window}, the penalty is not: {total:.3g} an update",
            effect=f"{times(counted)[2:]} times the decay that the recipe names",
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
