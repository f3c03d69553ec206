"""Clipping, loss scaling and numbers that are not finite: what happens to a gradient between reduction and update."""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from squall.verify.checks.training import Training, count
from squall.verify.finding import Finding
from squall.verify.trace import Array, Event, Rank, Run
from squall.verify.update import Share, Update, match

_EXACT = 1e-3


def clipping(training: Training) -> Finding:
    """Is the reduced, unscaled gradient of the whole update clipped, once?"""
    early = _in_the_midst(training) or _own_before_reduction(training) or _shards_apart(training)
    if early is not None:
        return early
    clipped = [update for update in training.all_updates if update.shares[0].clip is not None]
    if not clipped:
        noted = any(run.first.of("clip") for run in training.runs)
        says = "not between the backward pass and the update" if noted else "none"
        return Finding(check="clipping", outcome="--", says=says)
    for update in clipped:
        clip = update.shares[0].clip
        assert clip is not None
        if update.finite and update.processes > 1 and not _alike(update.applied) and _alike(update.given):
            return _before_reduction(training, update, clip)
        if update.scaling != 1.0 and not _unscaled(update.shares[0].rank, update, before=clip):
            return _scaled(training, update, clip)
    acted = sum(_acted(update) for update in clipped)
    limit = clipped[0].shares[0].clip
    assert limit is not None
    return Finding(
        check="clipping",
        outcome="ok",
        says=f"to {limit['limit']:g}, of the reduced gradient; it acted in {acted} of {count(len(clipped), 'update')}",
    )


def _in_the_midst(training: Training) -> Finding | None:
    """Clipping between the backward passes of one update: sums of clipped parts."""
    for update in training.all_updates:
        if update.window < 2:
            continue
        share = update.shares[0]
        first, last = share.backwards[0]["n"], share.backwards[-1]["n"]
        for clip in share.rank.of("clip"):
            if first < clip["n"] < last and (clip.get("norm") or 0.0) > clip["limit"]:
                return Finding(
                    check="clipping",
                    outcome="FAIL",
                    says=f"clips after each of {update.window} batches of an update, not once",
                    place=training.place(clip),
                    expected="the gradient of the whole update is clipped",
                    found=f"at update {update.number} a part of it, of norm {clip['norm']:.3g}, is cut to "
                    f"{clip['limit']:g} before the next batch is added",
                    effect="early batches are clipped again with each later one, and weigh less",
                    change="clip where the optimiser steps (sync_gradients in Accelerate)",
                )
    return None


def _own_before_reduction(training: Training) -> Finding | None:
    """Each rank scales its own gradient by a number of its own before the reduction: clipping by hand, too early."""
    acted = []
    for update in training.all_updates:
        if update.processes < 2 or not update.finite or update.reduced or update.shares[0].clip is not None:
            continue
        factors = mixture(update.given[0], update.own)
        if factors is None or max(factors) <= 0 or not _alike(update.given):
            continue
        share = [size.samples or 1 for size in update.shares]
        by_size = [factor / size for factor, size in zip(factors, share, strict=True)]
        if max(by_size) > 1.01 * min(by_size) and max(factors) > 1.01 * min(factors):
            acted.append((update, factors))
    if not acted:
        return None
    update, factors = acted[0]
    said = ", ".join(f"{factor * update.processes:.3g}" for factor in factors)
    return Finding(
        check="clipping",
        outcome="FAIL",
        says=f"each rank scales its own gradient before the reduction (by {said}), in {count(len(acted), 'update')}",
        place=training.place(update.step),
        expected="what limits a gradient acts on the reduced one, alike on all ranks",
        found=f"at update {update.number} with {update.processes} processes the applied gradient is the ranks' own, "
        f"added up with the factors {said} over {update.processes}",
        effect="not the limited gradient of the minibatch: its direction changes where ranks are cut unequally",
        change="clip after the gradients have been averaged, just before the step",
    )


def _shards_apart(training: Training) -> Finding | None:
    """Gradients that are spread over ranks, each rank's shard scaled by another factor."""
    for update in training.all_updates:
        if not update.run.sharded or not update.finite:
            continue
        ratios = [_shard_ratio(update, share) for share in update.shares]
        known = [ratio for ratio in ratios if numpy.isfinite(ratio)]
        if len(known) > 1 and min(known) > 0 and max(known) > 1.01 * min(known):
            clip = update.shares[0].rank.of("clip")
            said = ", ".join(f"{ratio * update.processes:.3g}" for ratio in ratios)
            return Finding(
                check="clipping",
                outcome="FAIL",
                says=f"each rank scales its own shard by another factor: {said}",
                place=training.place(clip[0] if clip else update.step),
                expected="one factor for the whole gradient, from the norm over all shards",
                found=f"at update {update.number} with {update.processes} processes the shards' factors are {said}",
                effect="layers of one gradient are limited unequally, by where they happen to lie",
                change="clip_grad_norm_ of torch.nn.utils on the sharded parameters, or all-reduce the squared norms",
            )
    return None


def _shard_ratio(update: Update, share: Share) -> float:
    """The factor between a rank's own shard of what is applied and the sum over ranks there."""
    square = product = 0.0
    for index, total in zip(update.indices, update.total, strict=True):
        shard = share.rank.array(share.step, f"grad.{index}")
        if shard is not None:
            mine = ~numpy.isnan(shard)
            square += float(numpy.dot(total[mine], total[mine]))
            product += float(numpy.dot(shard[mine], total[mine]))
    return product / square if square else float("nan")


def mixture(applied: Sequence[Array], own: Sequence[Sequence[Array]]) -> list[float] | None:
    """The factors with which the ranks' own gradients add up to an applied one; None where none do.

    Arguments:
        applied: parameter by parameter.
        own: of each rank, parameter by parameter.
    """
    target = numpy.concatenate(list(applied))
    parts = numpy.stack([numpy.concatenate(list(rank)) for rank in own], axis=1)
    if not numpy.isfinite(parts).all() or not numpy.isfinite(target).all() or len(target) < 2 * parts.shape[1]:
        return None
    factors, *_ = numpy.linalg.lstsq(parts, target, rcond=None)
    size = float(numpy.linalg.norm(target))
    if not size or float(numpy.linalg.norm(parts @ factors - target)) > 1e-3 * size:
        return None
    return [float(factor) for factor in factors]


def _acted(update: Update) -> bool:
    clip = update.shares[0].clip
    return clip is not None and clip.get("norm") is not None and clip["norm"] > clip["limit"]


def _alike(ranks: list[list[numpy.ndarray]]) -> bool:
    return all(
        numpy.allclose(one, other, rtol=1e-4, atol=1e-12)
        for rank in ranks[1:]
        for one, other in zip(ranks[0], rank, strict=True)
    )


def _before_reduction(training: Training, update: Update, clip: Event) -> Finding:
    norms = [share.clip.get("norm") for share in update.shares if share.clip is not None]
    said = ", ".join(f"{norm:.3g}" for norm in norms if norm is not None)
    return Finding(
        check="clipping",
        outcome="FAIL",
        says=f"each rank clips its own gradient, before the reduction (norms {said})",
        place=training.place(clip),
        expected=f"the norm of the reduced gradient is held to {clip['limit']:g}",
        found=f"at update {update.number} the ranks' gradients differ when they are clipped: their mean is not the "
        "clipped gradient of the minibatch",
        effect="the limit acts on another, larger norm, more so the smaller a rank's batch is; the direction changes "
        "where ranks are clipped unequally",
        change="clip after the gradients have been averaged, just before the step",
        known=("Goyal et al. 2017, section 3",),
    )


def _scaled(training: Training, update: Update, clip: Event) -> Finding:
    return Finding(
        check="clipping",
        outcome="FAIL",
        says=f"clipped without unscale_: the limit is {clip['limit']:g} / {update.scaling:g}",
        place=training.place(clip),
        expected=f"the norm of the gradient is held to {clip['limit']:g}",
        found=f"the gradients still carry the loss scale {update.scaling:g} when they are clipped"
        + (f" (norm {clip['norm']:.4g})" if clip.get("norm") is not None else ""),
        effect="every update is shortened to almost nothing, and by other factors whenever the scale changes",
        change="call scaler.unscale_(optimizer) before the clipping",
        known=("PyTorch: automatic mixed precision examples, gradient clipping",),
    )


def _unscaled(rank: Rank, update: Update, *, before: Event) -> bool:
    """Whether the scaler took its scale out between the backward pass and an event."""
    last = update.shares[0].backwards[-1]["n"]
    return any(event["what"] == "unscale" and last < event["n"] < before["n"] for event in rank.of("scaler"))


def loss_scaling(training: Training) -> Finding:
    """Is the loss scale taken out of the gradients before they are applied?"""
    part = _in_part(training)
    if part is not None:
        return part
    scaled = [update for update in training.all_updates if update.scaling != 1.0]
    if not scaled:
        return Finding(check="loss scaling", outcome="--", says="none")
    for update in scaled:
        rank = update.shares[0].rank
        if not _unscaled(rank, update, before=update.step):
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
            )
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
                found=f"with {run.processes} processes rank 0 ends at {by_rank[0][-1]:g}, another rank elsewhere",
                effect="means over ranks mix gradients of different scales",
                change="let all ranks see the same overflow: unscale after the reduction",
            )
    said = " and ".join(f"{scale:g}" for scale in sorted(scales))
    return Finding(check="loss scaling", outcome="ok", says=f"{said}, taken out before each update")


def _in_part(training: Training) -> Finding | None:
    """A factor on some layers only: what was scaled by hand and not taken out everywhere."""
    for update in training.all_updates:
        if update.reduced or not update.finite or update.processes < 2 or not _alike(update.given):
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


def non_finite(training: Training) -> Finding:
    """Do all ranks do the same where a loss or gradient is not a number?"""
    seen = 0
    for run in training.runs:
        broken = _broken(run)
        seen += len(broken)
        for ordinal in broken:
            finding = _handled(training, run, ordinal)
            if finding is not None:
                return finding
    if not seen:
        return Finding(check="non-finite", outcome="--", says="no loss and no gradient was infinite or not a number")
    return Finding(
        check="non-finite",
        outcome="note",
        says=f"{count(seen, 'loss')} not finite, each left out by all ranks: which samples go "
        "with it depends on the number of processes",
    )


def _broken(run: Run) -> list[int]:
    """The backward passes in which the loss of some rank was not finite."""
    found = set()
    for rank in run.ranks:
        for ordinal, event in enumerate(rank.backwards):
            if event.get("loss") is not None and not numpy.isfinite(event["loss"]):
                found.add(ordinal)
    return sorted(found)


def _handled(training: Training, run: Run, ordinal: int) -> Finding | None:
    """What the ranks did after a backward pass with a broken loss; None where all left the update out."""
    steps = [
        next(
            (step for step in rank.steps if any(rank.ordinal(b["n"]) == ordinal for b in rank.contributing(step))), None
        )
        for rank in run.ranks
    ]
    where = [
        rank.number
        for rank in run.ranks
        if ordinal < len(rank.backwards) and not numpy.isfinite(rank.backwards[ordinal].get("loss") or 0.0)
    ]
    rank = run.ranks[where[0]]
    place = training.place(rank.backwards[ordinal])
    if any(step is None for step in steps) and any(step is not None for step in steps):
        skipped = [number for number, step in enumerate(steps) if step is None]
        return Finding(
            check="non-finite",
            outcome="FAIL",
            says=f"rank {skipped[0]} leaves an update out alone, the others apply it",
            place=place,
            expected="all ranks leave the update out, or none",
            found=f"with {run.processes} processes rank {where[0]}'s loss is not finite in backward pass {ordinal}; "
            f"{len(skipped)} of {run.processes} ranks did not step",
            effect="from then on the ranks have different weights, and no error says so",
            change="let all ranks decide alike: all-reduce (MIN) whether the loss is finite",
        )
    found = [step for step in steps if step is not None]
    if not found:
        return None
    for one, step in zip(run.ranks, found, strict=True):
        arrays = [one.array(step, f"after.{index}") for index in step["from"]]
        if any(array is not None and not numpy.isfinite(array).all() for array in arrays):
            return Finding(
                check="non-finite",
                outcome="FAIL",
                says=f"a loss that is not finite reaches the weights, at backward pass {ordinal}",
                place=place,
                expected="such an update is left out, on all ranks",
                found=f"after it the weights of rank {one.number} are not numbers",
                effect="the training is over, and goes on",
                change="look whether the reduced gradient is finite before the step, on all ranks",
            )
    return None
