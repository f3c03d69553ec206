"""Loss scaling: is the factor on the loss taken out of all gradients before they are applied?"""

from __future__ import annotations

import numpy

from squall.verify.checks.clipping import unscaled
from squall.verify.checks.training import Training
from squall.verify.finding import Finding
from squall.verify.trace import Array
from squall.verify.update import Update, alike, match

_EXACT = 1e-3


def loss_scaling(training: Training) -> Finding:
    """Is the loss scale taken out of the gradients before they are applied?"""
    part = _in_part(training)
    if part is not None:
        return part
    scaled = [update for update in training.all_updates if update.scaling != 1.0]
    if not scaled:
        return Finding(check="loss scaling", outcome="--", says="none")
    left = [update for update in scaled if update.finite and not unscaled(update, before=update.step)]
    if any(update.shares[0].clip is not None for update in left):
        return Finding(check="loss scaling", outcome="--", says="clipped with the scale in it: see clipping")
    if left:
        return _left_in(training, left[0])
    scales = {update.scaling for update in scaled}
    for run in training.several:
        by_rank = [[event["scale"] for event in rank.of("scaler") if event["what"] == "step"] for rank in run.ranks]
        if any(one != by_rank[0] for one in by_rank[1:]):
            return Finding(
                check="loss scaling",
                outcome="FAIL",
                says="ranks have different loss scales",
                place=training.place(scaled[0].step),
                expected="one scale on all ranks",
                found=f"with {run.processes} processes the scales of the ranks' updates are not the same",
                effect="means over ranks mix gradients of different scales",
                change="let all ranks see the same overflow: unscale after the reduction",
            )
    said = " and ".join(f"{scale:g}" for scale in sorted(scales))
    return Finding(check="loss scaling", outcome="ok", says=f"{said}, taken out of each update")


def _left_in(training: Training, update: Update) -> Finding:
    return Finding(
        check="loss scaling",
        outcome="FAIL",
        says=f"the update applies gradients x {update.scaling:g}: the loss scale is never taken out",
        place=training.place(update.step),
        expected="scaler.step(optimizer), which divides by the scale and leaves out updates that overflowed",
        found=f"optimizer.step() with gradients that carry the scale {update.scaling:g}",
        effect="SGD's rate is that many times too large; Adam hides it but for its epsilon and its decay, and "
        "updates that overflowed are applied",
        change="scaler.step(optimizer); scaler.update()",
        known=("nerfacc#307",),
    )


def _in_part(training: Training) -> Finding | None:
    """A factor on some layers only: what was scaled by hand and not taken out everywhere."""
    for update in training.all_updates:
        if update.reduced or not update.finite or update.processes < 2 or not alike(update.given):
            continue
        one = [match([given], [total], [index]) for given, total, index in _parts(update)]
        sized = [found for found in one if numpy.isfinite(found.ratio) and found.ratio]
        if len(sized) < 2 or any(found.difference > _EXACT for found in sized):
            continue
        low, high = min(sized, key=lambda found: found.ratio), max(sized, key=lambda found: found.ratio)
        quotient = high.ratio / low.ratio
        factors = [term["factor"] for event in update.shares[0].backwards for term in event.get("terms", ())]
        if quotient > 1.5 and any(factor and abs(quotient / factor - 1) < 1e-2 for factor in factors):
            rank = update.shares[0].rank
            return Finding(
                check="loss scaling",
                outcome="FAIL",
                says=f"{rank.name(high.worst)} keeps the loss's factor {quotient:.4g}, other layers do not",
                place=training.place(update.step),
                expected="the factor on the loss is taken out of every gradient",
                found=f"at update {update.number} {rank.name(high.worst)} is {quotient:.4g} times too large beside "
                f"{rank.name(low.worst)}",
                effect=f"that layer's rate is {quotient:.4g} times the others'",
                change="divide the gradients of all parameters by the scale, or use torch.amp.GradScaler",
            )
    return None


def _parts(update: Update) -> list[tuple[Array, Array, int]]:
    return list(zip(update.given[0], update.total, update.indices, strict=True))
