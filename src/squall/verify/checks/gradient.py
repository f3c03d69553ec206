"""Gradient: is what the optimiser applies the gradient of the mean over all samples of the step?

Two facts settle it. What was applied must be a mixture of all ranks' own gradients, the same on all ranks, and of no
others; and the weight with which a mean over the samples enters must be 1 (`factor.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from squall.verify.checks.factor import factor
from squall.verify.checks.law import spans, usable
from squall.verify.checks.mixing import by_counts, factors
from squall.verify.checks.training import Training, count, numbers, times
from squall.verify.finding import Finding
from squall.verify.trace import Array, Event, Rank, Run
from squall.verify.update import Update, alike, close


def gradient(training: Training) -> Finding:
    """Is what is applied the gradient of the mean over all samples of the step?"""
    wrong = _emptied(training)
    if wrong is not None:
        return wrong
    found = usable(training)
    if not found:
        return Finding(check="gradient", outcome="--", says="no update with finite gradients that all ranks made")
    alone = separate(training)
    if alone is not None:
        return alone
    if not any(numpy.any(array) for update in found for array in update.total):
        return Finding(check="gradient", outcome="--", says=f"every gradient is zero, in {count(len(found), 'update')}")
    found = [update for update in found if any(numpy.any(array) for array in update.total)]
    wrong = _foreign(training) or _moved_between(training, found)
    if wrong is not None:
        return wrong
    mean = {id(update) for update in found if update.reduced or by_counts(update) is not None}
    strange = [update for update in found if id(update) not in mean and not _clipped_alone(update)]
    if strange:
        return _not_reduced(training, strange)
    whole = [update for update in found if id(update) in mean and not spans(update)]
    if not whole:
        says = "every update holds batches of two epochs" if mean else "each rank clips its own gradient: see clipping"
        return Finding(check="gradient", outcome="--", says=says)
    return factor(training, whole)


def separate(training: Training) -> Finding | None:
    """Ranks that never met, as no process group was made: then nothing can be held against each other."""
    for run in training.several:
        if any(rank.about.get("backend") or rank.about.get("lockstep") for rank in run.ranks):
            continue
        lightning = "Lightning" in run.first.about.get("frameworks", ())
        return Finding(
            check="gradient",
            outcome="FAIL",
            says=f"{run.processes} separate trainings: no process group is made",
            place=training.place(run.first.backwards[0]) if run.first.backwards else None,
            expected="one training by all processes",
            found="the processes never meet, and each trains a network of its own",
            effect="what is saved is the work of one process; the others' is thrown away, or written over it",
            change="Trainer(devices=..., strategy='ddp'): on CPU Lightning takes one device unless it is told"
            if lightning
            else "torch.distributed.init_process_group() where WORLD_SIZE is above 1, and DDP around the network",
        )
    return None


def emptied(run: Run) -> Event | None:
    """An update that came to nothing as the gradients had been emptied before it; None unless most are such.

    Either none are left, and a later backward pass found that those of an earlier one were used by nobody, or they are
    all zeros where the rank itself had computed others.
    """
    rank = run.first
    unused: dict[int, set[int]] = {}  # by parameter: backward passes whose gradients nobody used
    for backward in rank.backwards:
        for index, numbers_ in backward.get("dropped", {}).items():
            unused.setdefault(int(index), set()).update(numbers_)
    before: dict[int, int] = {}
    found: list[Event] = []
    for step in rank.steps:
        begin = before.get(step["optimizer"], -1)
        before[step["optimizer"]] = step["n"]
        if step["from"]:
            computed = [rank.array(step, f"local.{index}") for index in step["from"]]
            given = [rank.array(step, f"grad.{index}") for index in step["from"]]
            if _any(computed) and not _any(given):
                found.append(step)
        elif any(begin < number < step["n"] for index in step["group_of"] for number in unused.get(int(index), ())):
            found.append(step)
    return found[0] if len(found) > 0.5 * len(rank.steps) else None


def _any(arrays: Sequence[Array | None]) -> bool:
    """Whether any number is not zero."""
    return any(array is not None and bool(numpy.nan_to_num(array).any()) for array in arrays)


def _emptied(training: Training) -> Finding | None:
    for run in training.runs:
        step = emptied(run)
        if step is None:
            continue
        return Finding(
            check="gradient",
            outcome="FAIL",
            says="the gradients are emptied after the backward pass, before the update: nothing is applied",
            place=training.place(step),
            expected="backward(), then step(), then zero_grad()",
            found=f"at update {run.first.steps.index(step)} with {count(run.processes, 'process')} the backward pass "
            "has given gradients, and the optimiser is given " + ("zeros" if step["from"] else "none"),
            effect="nothing is learned; the loss moves only with the batches",
            change="zero_grad() before the backward pass, or after the step",
            known=("byol-pytorch#93",),
        )
    return None


def _foreign(training: Training) -> Finding | None:
    """A gradient that another optimiser's update has used up, and that is applied with one which that never uses.

    Optimisers of one loss that step unequally often all use the same backward passes, each once.
    """
    for run in training.runs:
        rank = run.first
        for step in rank.steps:
            passes = [one["n"] for one in rank.contributing(step)]
            for others in _others(rank, step):
                used = {number: other["n"] for other in others for part in other["from"].values() for number in part}
                left = [number for number in passes[:-1] if used.get(number, step["n"]) < passes[-1]]
                if left and not all(number in used for number in passes):
                    return Finding(
                        check="gradient",
                        outcome="FAIL",
                        says="the gradient of another loss is left in it",
                        place=training.place(step),
                        expected="the gradients of this optimiser's own loss",
                        found=f"at update {rank.steps.index(step)} the gradients still hold a backward pass that "
                        "another optimiser's update has used",
                        effect="the network follows the other network's loss too: a critic that learns to be deceived",
                        change="zero_grad() of this optimiser after the other's backward pass, before its own",
                        known=("Lightning#557", "OmniTokenizer#15"),
                    )
    return None


def _others(rank: Rank, step: Event) -> list[list[Event]]:
    """The updates of each other optimiser, the last first."""
    numbers_ = dict.fromkeys(one["optimizer"] for one in rank.steps if one["optimizer"] != step["optimizer"])
    return [[one for one in reversed(rank.steps) if one["optimizer"] == number] for number in numbers_]


def _moved_between(training: Training, found: Sequence[Update]) -> Finding | None:
    """Gradients that are added up though the weights were changed between their backward passes."""
    for update in found:
        share = update.shares[0]
        passes = [one for one in share.backwards if not one.get("closure")]
        moved = next((one for one in passes[1:] if _other_weights(passes[0], one, share.step)), None)
        if spans(update) or moved is None:
            continue
        return Finding(
            check="gradient",
            outcome="FAIL",
            says="gradients at different weights are added up",
            place=training.place(moved),
            expected="all backward passes of an update at the same weights",
            found=f"at update {update.number} the weights were changed between its {len(passes)} backward passes, and "
            "the gradients were not emptied",
            effect="neither the gradient here nor there: about twice as large as either",
            change="zero_grad() where the weights have been changed, before the next backward pass",
        )
    return None


def _other_weights(one: Event, other: Event, step: Event) -> bool:
    """Whether parameters of an update had other values in two backward passes."""
    before, after = one.get("weights") or {}, other.get("weights") or {}
    return any(index in step["from"] and before[index] != after[index] for index in set(before) & set(after))


def _clipped_alone(update: Update) -> bool:
    """Whether each rank clips what it alone has computed: a matter of its own."""
    return (
        any(share.clip is not None for share in update.shares)
        and all(one.difference < update.tolerance for one in update.alone)
        and alike(update.given)
    )


def _not_reduced(training: Training, strange: Sequence[Update]) -> Finding:
    update = strange[0]
    alone = update.processes > 1 and all(one.difference < update.tolerance for one in update.alone)
    rank = update.shares[0].rank
    worst = max(update.matches, key=lambda one: one.difference)
    place = training.place(update.step)
    if alone and averages_weights(update.run):
        return Finding(
            check="gradient",
            outcome="note",
            says="each rank applies its own, and the weights are averaged now and then: local SGD",
            place=place,
        )
    if alone:
        return Finding(
            check="gradient",
            outcome="FAIL",
            says=f"never reduced: each rank applies its own, in {len(strange)} of {len(usable(training))} updates",
            place=training.place(update.shares[0].backwards[-1]),
            expected=f"the mean over {update.processes} ranks reaches every optimiser",
            found=f"at update {update.number} rank 0 applies what it has computed itself"
            + ("" if close(update.alone[0].ratio, 1.0) else f", {times(update.alone[0].ratio)}")
            + ": nothing of the other ranks' is in it",
            effect="every rank trains another network on its share of the data; the one that is saved has seen "
            f"1/{update.processes} of it",
            change="let the last backward pass of each update reduce: call the DDP module, and keep no_sync() to the "
            "passes before the last",
            known=("sd-scripts#924", "minimind#853"),
        )
    if update.processes > 1 and not alike(update.applied):
        return Finding(
            check="gradient",
            outcome="FAIL",
            says=f"ranks apply different gradients from update {update.number} on",
            place=place,
            expected="the same reduced gradient on all ranks",
            found=f"rank 0's differs from the sum over ranks by {worst.difference:.1%} in {rank.name(worst.worst)}",
            effect="the ranks' weights drift apart",
            change="reduce every parameter that gets a gradient, on every rank, in the same order",
        )
    mixed = factors(update)
    says = f"something changes it after the reduction: {worst.difference:.1%} in {rank.name(worst.worst)}"
    if mixed is not None:
        weights = numbers([f"{one * update.processes:.3g}" for one in mixed])
        says = f"the ranks' own gradients are added up with the factors {weights} over {update.processes}"
    return Finding(
        check="gradient", outcome="note", says=f"{says} at update {update.number}, alike on all ranks", place=place
    )


def averages_weights(run: Run) -> bool:
    """Whether a run is local SGD: weights that differ between ranks and are averaged now and then."""
    apart = False
    for _, steps in run.whole():
        index = next(iter(steps[0]["group_of"]))
        arrays = [rank.array(step, f"before.{index}") for rank, step in zip(run.ranks, steps, strict=True)]
        found = [one for one in arrays if one is not None]
        equal = all(numpy.allclose(one, found[0], rtol=1e-6, atol=0) for one in found[1:])
        if apart and equal:
            return True
        apart = apart or not equal
    return False
