"""Clipping: is the reduced, unscaled gradient of the whole update clipped, once?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from squall.verify import edits
from squall.verify.checks.training import Training, count
from squall.verify.finding import Finding
from squall.verify.trace import Array, Event, Rank
from squall.verify.update import Share, Update, alike


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
        if update.finite and update.processes > 1 and not alike(update.applied) and alike(update.given):
            return _before_reduction(training, update, clip)
        if update.scaling != 1.0 and not unscaled(update.shares[0].rank, update, before=clip):
            return _scaled(training, update, clip)
    finite = [update for update in clipped if update.finite]
    if not finite:
        return Finding(check="clipping", outcome="--", says="no update with finite gradients")
    acted = sum(_acted(update) for update in finite)
    limit = clipped[0].shares[0].clip
    assert limit is not None
    return Finding(
        check="clipping",
        outcome="ok",
        says=f"to {limit['limit']:g}, of the reduced gradient; it acted in {acted} of {count(len(finite), 'update')}",
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
        if factors is None or max(factors) <= 0 or not alike(update.given):
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
        edits=edits.unscale(training.place(clip)),
        known=("PyTorch: automatic mixed precision examples, gradient clipping",),
    )


def unscaled(rank: Rank, update: Update, *, before: Event) -> bool:
    """Whether the scaler took its scale out between the backward pass and an event."""
    last = update.shares[0].backwards[-1]["n"]
    return any(event["what"] == "unscale" and last < event["n"] < before["n"] for event in rank.of("scaler"))
