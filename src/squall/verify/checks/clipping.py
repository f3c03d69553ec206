"""Clipping: is the reduced, unscaled gradient of the whole update clipped, once?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy

from squall.verify import edits
from squall.verify.checks.mixing import by_counts, factors
from squall.verify.checks.training import Training, count, numbers
from squall.verify.finding import Finding
from squall.verify.trace import Event, Rank, Run
from squall.verify.update import Share, Update, alike, close

_SAME = 1e-2
_EARLY = ("lczero-training#162",)


def clipping(training: Training) -> Finding:
    """Is the reduced, unscaled gradient of the whole update clipped, once?"""
    early = _in_the_midst(training) or _own_before_reduction(training) or _shards_apart(training)
    if early is not None:
        return early
    clipped = [update for update in training.all_updates if update.shares[0].clip is not None]
    if not clipped:
        noted = any(run.first.of("clip") for run in training.runs)
        says = "not of all parameters of an update, or not between its backward pass and it" if noted else "none"
        return Finding(check="clipping", outcome="--", says=says)
    for update in clipped:
        clip = update.shares[0].clip
        assert clip is not None
        if not update.finite or not any(_acts(share.clip, share.rank) for share in update.shares):
            continue  # a norm that is only looked at
        if update.processes > 1 and not alike(update.applied) and alike(update.given):
            return _before_reduction(training, update, clip)
        if update.scaling != 1.0 and not unscaled(update, before=clip):
            return _scaled(training, update, clip)
    finite = [update for update in clipped if update.finite]
    if not finite:
        return Finding(check="clipping", outcome="--", says="no update with finite gradients")
    return _fine(training, finite)


def _fine(training: Training, updates: Sequence[Update]) -> Finding:
    """What was clipped, and how often it acted; of values that are clipped one by one only some are kept."""
    clips = _clips(updates[0])
    if not clips:
        return Finding(check="clipping", outcome="--", says="norms are only looked at: to no limit")
    acted = sum(_acts(clip, update.shares[0].rank) for update in updates for clip in _clips(update)[:1])
    each, least = ("each value ", "at least ") if clips[0].get("norm") is None else ("", "")
    said = f"{each}to {clips[0]['limit']:g}, of the reduced gradient; it acted in {least}{acted} of "
    said += count(len(updates), "update")
    if len(clips) > 1:
        limits = numbers([f"{clip['limit']:g}" for clip in clips])
        return Finding(
            check="clipping",
            outcome="note",
            says=f"{said}; {len(clips)} times before each update, to {limits}",
            place=training.place(clips[1]),
        )
    return Finding(check="clipping", outcome="ok", says=said)


def _clips(update: Update) -> list[Event]:
    """All clippings of an update to a limit: between its last backward pass and it, of all its parameters."""
    share = update.shares[0]
    last = share.backwards[-1]["n"]
    between = [clip for clip in share.rank.of("clip") if last < clip["n"] < share.step["n"]]
    return [clip for clip in between if _covers(clip, share.step) and math.isfinite(clip["limit"])]


def _covers(clip: Event, step: Event) -> bool:
    return {int(index) for index in step["from"]} <= set(clip["parameters"])


def _acts(clip: Event | None, rank: Rank) -> bool:
    """Whether a clipping has changed anything; of values only some are kept."""
    if clip is None:
        return False
    if clip.get("norm") is not None:
        return bool(clip["norm"] > clip["limit"])
    arrays = [rank.array(clip, f"grad.{index}") for index in clip["parameters"]]
    return any(array is not None and bool((numpy.abs(array) > clip["limit"]).any()) for array in arrays)


def _in_the_midst(training: Training) -> Finding | None:
    """Clipping between the backward passes of one update: sums of clipped parts."""
    for update in training.all_updates:
        if update.window < 2:
            continue
        share = update.shares[0]
        first, last = share.backwards[0]["n"], share.backwards[-1]["n"]
        for clip in share.rank.of("clip"):
            if first < clip["n"] < last and _acts(clip, share.rank) and _covers(clip, share.step):
                return Finding(
                    check="clipping",
                    outcome="FAIL",
                    says=f"clips after each of {update.window} batches of an update, not once",
                    place=training.place(clip),
                    expected="the gradient of the whole update is clipped",
                    found=f"at update {update.number} a part of it is cut to {clip['limit']:g}, and the next batch is "
                    "added to that",
                    effect="early batches are clipped again with each later one, and weigh less",
                    change="clip where the optimiser steps (sync_gradients in Accelerate)",
                    known=("super-gradients#653",),
                )
    return None


def _own_before_reduction(training: Training) -> Finding | None:
    """Each rank scales its own gradient by a number of its own before the reduction: clipping by hand, too early."""
    acted = [one for run in training.several for one in _acted_alone(training, run)]
    if not acted:
        return None
    update, found = acted[0]
    said = ", ".join(f"{factor * update.processes:.3g}" for factor in found)
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
        known=_EARLY,
    )


def _acted_alone(training: Training, run: Run) -> list[tuple[Update, list[float]]]:
    """The updates of a run with factors that no mean over the ranks has.

    Those of a mean follow what the ranks hold, or add up to the same in every update, whatever it weighs by.
    """
    found = [
        (update, mixed)
        for update in training.updates(run)
        if update.finite and update.shares[0].clip is None and (mixed := factors(update)) is not None and max(mixed) > 0
    ]
    sums = [sum(mixed) for _, mixed in found]
    if not found or close(min(sums), max(sums), _SAME):
        return []
    return [(update, mixed) for update, mixed in found if not update.reduced and by_counts(update) is None]


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


def _before_reduction(training: Training, update: Update, clip: Event) -> Finding:
    norms = [share.clip["norm"] for share in update.shares if share.clip is not None and "norm" in share.clip]
    said = f" (norms {', '.join(f'{norm:.3g}' for norm in norms)})" if norms else ""
    return Finding(
        check="clipping",
        outcome="FAIL",
        says=f"each rank clips its own gradient, before the reduction{said}",
        place=training.place(clip),
        expected=f"the norm of the reduced gradient is held to {clip['limit']:g}",
        found=f"at update {update.number} the ranks' gradients differ when they are clipped: their mean is not the "
        "clipped gradient of the minibatch",
        effect="the limit acts on another, larger norm, more so the smaller a rank's batch is; the direction changes "
        "where ranks are clipped unequally",
        change="clip after the gradients have been averaged, just before the step",
        known=_EARLY,
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
        known=(
            "PyTorch: automatic mixed precision examples, gradient clipping",
            *("pytorch/examples#1196", "returnn#1590"),
        ),
    )


def unscaled(update: Update, *, before: Event) -> bool:
    """Whether the loss scale is out of the gradients at an event: a scaler took it, or will, or it is gone by hand."""
    last, optimizers = update.shares[0].backwards[-1]["n"], (update.step["optimizer"], -1)
    for event in update.shares[0].rank.of("scaler"):
        taken = event["what"] in ("unscale", "step") and event["optimizer"] in optimizers
        if taken and last < event["n"] < before["n"]:
            return True
    size = abs(update.ratio) * update.processes
    return size > 0 and abs(math.log(size * update.scaling)) < abs(math.log(size))
