"""Gradient and accumulation: is what the optimiser applies the gradient of the mean over all samples of the step?

Two facts settle it. What was applied must be a multiple of the sum of all ranks' own gradients, the same on all ranks;
and the weight with which a mean over the samples enters must be 1. Where it is another number, the runs tell what it
follows: the number of processes, the batches of an update, the loss scale, or the samples of a batch (a sum). A
constant is the user's own factor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy

from squall.verify.checks.training import Training, count, numbers, times
from squall.verify.finding import Finding
from squall.verify.trace import Event, Run
from squall.verify.update import TOLERANCE, Update, close


@dataclass(frozen=True)
class Law:
    """What the weight of a mean follows: `factor` of an update, `name` in words, times a constant."""

    name: str
    kind: str  # "one", "processes", "batches", "scale", "samples"
    factor: Callable[[Update], float]
    constant: float = 1.0


LAWS = (
    Law("1", "one", lambda update: 1.0),
    Law("the number of processes", "processes", lambda update: float(update.processes)),
    Law("1 / the number of processes", "processes", lambda update: 1 / update.processes),
    Law("the number of batches of an update", "batches", lambda update: float(update.window)),
    Law("1 / the number of batches of an update", "batches", lambda update: 1 / update.window),
    Law("the loss scale", "scale", lambda update: update.scaling),
    Law("1 / the loss scale", "scale", lambda update: 1 / update.scaling),
    Law("the samples of a rank's batches", "samples", lambda update: update.samples / update.processes),
    Law("the samples of all batches", "samples", lambda update: float(update.samples)),
    Law("the square of the number of processes", "processes", lambda update: float(update.processes**2)),
    Law("1 / the square of the number of processes", "processes", lambda update: 1 / update.processes**2),
)


def law(training: Training, updates: Sequence[Update], slot: int = 0) -> Law | None:
    """What the weight of the term in a slot follows over updates; None where nothing simple fits.

    Laws with the constant 1 come first, then the simplest: with one number of processes a factor of 2 may be that
    number or the user's own, and is not taken for the former unless the reduction itself shows it.
    """
    found = []
    for one in LAWS:
        constants = []
        for update in updates:
            scales = update.scales
            if scales is None or slot >= len(scales):
                return None
            factor = one.factor(update)
            constants.append(scales[slot] / factor if factor else numpy.nan)  # no sizes of batches are known
        middle = float(numpy.median(constants))
        if all(close(constant, middle, 2e-3) for constant in constants):
            found.append(Law(one.name, one.kind, one.factor, middle))
    exact = [one for one in found if close(one.constant, 1.0, 2e-3)]
    plain = next((one for one in found if one.kind == "one"), None)
    if exact and exact[0].kind == "processes" and plain is not None:  # one number of processes
        ratio = updates[0].ratio * updates[0].processes * updates[0].scaling
        if close(ratio, 1.0, 2e-3) and not _by_processes(updates[0]):
            return plain
    return exact[0] if exact else next(iter(found), None)


def _by_processes(update: Update) -> bool:
    """Whether the loss was multiplied or divided by the number of processes on its way."""
    terms = update.shares[0].terms or [[]]
    wanted = (float(update.processes), 1 / update.processes)
    return any(close(constant, one, 1e-4) for term in terms[0] for constant in term.constants for one in wanted)


def usable(training: Training) -> list[Update]:
    """The updates with finite numbers."""
    return [update for update in training.all_updates if update.finite]


def spans(update: Update) -> bool:
    """Whether an update holds batches of two passes over the data."""
    for share in update.shares:
        passes = set()
        for group in share.batches:
            batch = group[0].get("batch")
            if batch is not None:
                passes.add(share.rank.events[batch].get("of"))
        if len(passes) > 1:
            return True
    return False


def gradient(training: Training) -> Finding:
    """Is what is applied the gradient of the mean over all samples of the step?"""
    found = usable(training)
    if not found:
        return Finding(check="gradient", outcome="--", says="no update with finite gradients that all ranks made")
    alone = _separate(training)
    if alone is not None:
        return alone
    if not any(numpy.any(array) for update in found for array in update.total):
        return Finding(check="gradient", outcome="--", says=f"every gradient is zero, in {count(len(found), 'update')}")
    found = [update for update in found if any(numpy.any(array) for array in update.total)]
    foreign = _foreign(training) or _moved_between(training, found)
    if foreign is not None:
        return foreign
    strange = [update for update in found if not update.reduced and not _clipped_alone(update)]
    if strange:
        return _not_reduced(training, strange)
    whole = [update for update in found if update.reduced and not spans(update)]
    if not whole:
        return Finding(check="gradient", outcome="--", says="each rank clips its own gradient: see clipping")
    last = max(whole, key=lambda update: update.processes)
    if any(update.scales is None for update in whole):
        return _unread(training, whole)
    one = law(training, whole)
    if one is not None and one.kind == "processes":
        return _follows(training, last, one)
    difference, _, of, worst = max(
        (one.difference, place, update, one.worst) for place, update in enumerate(whole) for one in update.matches[:1]
    )
    name = of.shares[0].rank.name(worst)
    samples = f" / {count(last.samples, 'sample')}" if last.samples else ""
    exact = f"largest relative difference {difference:.0e} ({name})"
    if one is not None and one.kind == "samples" and close(one.constant, 1.0, 2e-3):
        return Finding(
            check="gradient",
            outcome="note",
            says=f"= {one.constant:.3g} x the sum over the samples of a rank, not their mean: the rate has to know "
            f"{one.name}; {exact}",
            place=training.place(last.shares[0].backwards[-1]),
        )
    factor = ""
    if one is not None and one.kind == "one" and not close(one.constant, 1.0, 2e-3):
        factor = f", {times(one.constant)} in the loss with any number of processes"
    return Finding(
        check="gradient",
        outcome="ok",
        says=f"= mean of {count(last.processes, 'rank')}{samples}{factor}; {exact}",
    )


def _separate(training: Training) -> Finding | None:
    """Ranks that never met: no process group was made."""
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


def separate(training: Training) -> bool:
    """Whether the processes are trainings of their own: then nothing can be held against each other."""
    return _separate(training) is not None


def _foreign(training: Training) -> Finding | None:
    """A gradient that another optimiser's update has used up, and that is applied with later ones."""
    for run in training.runs:
        rank = run.first
        for step in rank.steps:
            backwards = rank.contributing(step)
            for other in rank.steps:
                if other["optimizer"] == step["optimizer"] or not backwards or not other["n"] < backwards[-1]["n"]:
                    continue
                used = {number for part in other["from"].values() for number in part}
                left = [one for one in backwards[:-1] if one["n"] in used and one["n"] < other["n"]]
                if left and other["n"] > left[0]["n"]:
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
                    )
    return None


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
        and all(one.difference < 50 * TOLERANCE for one in update.alone)
        and _same(update.given)
    )


def _same(ranks: Sequence[Sequence[numpy.ndarray]]) -> bool:
    first = ranks[0]
    return all(
        numpy.allclose(one, other, rtol=1e-4, atol=1e-12)
        for rank in ranks[1:]
        for one, other in zip(first, rank, strict=True)
    )


def _not_reduced(training: Training, strange: Sequence[Update]) -> Finding:
    update = strange[0]
    alone = update.processes > 1 and all(one.difference < 50 * TOLERANCE for one in update.alone)
    rank = update.shares[0].rank
    worst = max(update.matches, key=lambda one: one.difference)
    place = training.place(update.step)
    if alone and _averages_weights(update.run):
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
            found=f"at update {update.number} rank 0's gradient is {times(update.alone[0].ratio)} its own; the other "
            "ranks' are not in it",
            effect="every rank trains another network on its share of the data; the one that is saved has seen "
            f"1/{update.processes} of it",
            change="let the last backward pass of each update reduce: call the DDP module, and keep no_sync() to the "
            "passes before the last",
        )
    if update.processes > 1 and not _same(update.applied):
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
    return Finding(
        check="gradient",
        outcome="note",
        says=f"something changes it after the reduction: {worst.difference:.1%} in {rank.name(worst.worst)} at update "
        f"{update.number}, alike on all ranks",
        place=place,
    )


def _averages_weights(run: Run) -> bool:
    """Whether ranks' weights differ and come together again: local SGD."""
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


def averages_weights(run: Run) -> bool:
    """Whether a run is local SGD: weights that differ between ranks and are averaged now and then."""
    return _averages_weights(run)


def _unread(training: Training, updates: Sequence[Update]) -> Finding:
    """The loss is not one that can be read: only the reduction is known."""
    wrong = [update for update in updates if not close(update.ratio * update.processes * update.scaling, 1.0, 2e-3)]
    last = updates[-1]
    if wrong:
        update = wrong[0]
        return Finding(
            check="gradient",
            outcome="note",
            says=f"{times(update.ratio * update.processes)} the mean of {update.processes} ranks; how the loss is made "
            "of its samples could not be read",
            place=training.place(update.step),
        )
    return Finding(
        check="gradient",
        outcome="ok",
        says=f"= mean of {count(last.processes, 'rank')}; how a rank's loss is made of its samples could not be read",
    )


def _follows(training: Training, update: Update, one: Law) -> Finding:
    factor = one.factor(update)
    loss_side = _by_processes(update) or close(update.ratio * update.processes * update.scaling, 1.0, 2e-3)
    backward, step = update.shares[0].backwards[-1], update.step
    processes = numbers(sorted({run.processes for run in training.runs}))
    if factor > 1:
        change = (
            "take the factor out of the loss: DDP already takes the mean over ranks"
            if loss_side
            else "divide the summed gradients by the number of processes before the step"
        )
        effect = f"the rate acts as if it were {times(factor)} with {update.processes} processes, and grows with them"
    else:
        change = (
            "leave the loss of each rank as it is: the mean over ranks is taken of the gradients"
            if loss_side
            else "divide once: DDP's all-reduce has taken the mean already"
        )
        effect = (
            f"the rate acts as if it were {times(factor)} with {update.processes} processes: slower training, and "
            "weight decay that is too strong beside it; Adam hides it but for its epsilon"
        )
    return Finding(
        check="gradient",
        outcome="FAIL",
        says=f"{times(factor)} with {count(update.processes, 'process')}: it follows {one.name}",
        place=training.place(backward if loss_side else step),
        expected=f"the gradient of the mean over all {update.samples or ''} samples of the step".replace("  ", " "),
        found=f"that, {times(factor)}, with {processes} processes each time {one.name}; "
        + ("it is in the loss" if loss_side else "it is in the reduction"),
        effect=effect,
        change=change,
    )


def accumulation(training: Training) -> Finding:
    """Does an update of several batches weigh each of their samples alike, and lose none?"""
    found = usable(training)
    lost = _dropped(training) or _again(training)
    if lost is not None:
        return lost
    crossing = [update for update in found if spans(update)]
    if crossing and not all(_weighs_one(update) for update in crossing):
        update = crossing[0]
        return Finding(
            check="accumulation",
            outcome="FAIL",
            says=f"update {update.number} holds {update.window} batches of two epochs",
            place=training.place(update.step),
            expected="the last window of an epoch is applied in it, divided by what it holds",
            found=f"its gradients stay until the next epoch's first update, of {update.window} batches on a rank, "
            f"whose mean then weighs {(update.scales or [0.0])[0]:.3g} instead of 1",
            effect="one update an epoch is too large, and made with weights that are gone",
            change="step also after an epoch's last batch, and divide by the batches of that window",
            known=("mlx-lm#1413",),
        )
    many = [update for update in found if update.window > 1]
    if not many:
        return Finding(check="accumulation", outcome="--", says="one batch an update")
    many = [update for update in many if update.reduced and update.scales is not None]
    if not many:
        return Finding(check="accumulation", outcome="--", says="the loss could not be read")
    return _divided(training, many, [update for update in found if update.reduced and not spans(update)])


def _weighs_one(update: Update) -> bool:
    return update.scales is not None and close(update.scales[0], 1.0, 2e-3)


def _dropped(training: Training) -> Finding | None:
    """Batches whose gradients nothing has applied."""
    for run in training.runs:
        rank = run.first
        applied = {number for step in rank.steps for part in step["from"].values() for number in part}
        finite = {event["n"] for event in rank.backwards if event.get("loss") is None or numpy.isfinite(event["loss"])}
        thrown = []
        for event in rank.backwards:
            for numbers_ in event.get("dropped", {}).values():
                thrown += [number for number in numbers_ if number not in applied and number in finite]
        if not applied:
            continue
        skipped = {event["n"] for event in rank.of("scaler") if event["what"] == "skipped"}
        used = {rank.events[number].get("batch") for number in applied if number >= 0}  # SAM looks twice, LBFGS often
        thrown = [n for n in thrown if rank.events[n].get("batch") not in used and not rank.events[n].get("closure")]
        lost = sorted(set(thrown))
        lost = [number for number in lost if not _somewhere_not_finite(run, rank.ordinal(number))]
        if lost and not skipped:
            event = rank.events[lost[0]]
            return Finding(
                check="accumulation",
                outcome="FAIL",
                says=f"the gradients of {len(lost)} of {len(rank.backwards)} backward passes are thrown away",
                place=training.place(event),
                expected="every batch of an epoch enters an update",
                found=f"with {run.processes} processes, {count(len(lost), 'batch')} of rank "
                "0 had a backward pass, and then the gradients were emptied without an update",
                effect="these samples are read and computed for nothing, each epoch others",
                change="step also after an epoch's last batch, and divide by the batches of that window",
                known=("mlx-lm#1544",),
            )
    return None


def _again(training: Training) -> Finding | None:
    """Batches that are applied in one update after another: their gradients are never emptied."""
    for run in training.runs:
        rank = run.first
        before: dict[int, dict[str, list[int]]] = {}
        for step in rank.steps:
            last = before.get(step["optimizer"], {})
            twice = [index for index, part in step["from"].items() if set(part) & set(last.get(index, ()))]
            if twice:
                return Finding(
                    check="accumulation",
                    outcome="FAIL",
                    says="gradients are applied again and again: they are not emptied after an update",
                    place=training.place(step),
                    expected="each batch enters one update",
                    found=f"at update {rank.steps.index(step)} with {run.processes} processes the gradients hold "
                    f"{len(step['from'][twice[0]])} backward passes, and some were applied before",
                    effect="a sum over all batches since the last zero_grad, as if by a momentum of 1, at weights that "
                    "are gone",
                    change="optimizer.zero_grad() before each update's first backward pass",
                )
            before[step["optimizer"]] = step["from"]
    return None


def _somewhere_not_finite(run: Run, ordinal: int) -> bool:
    """Whether any rank's loss in the same backward pass was not a number."""
    for rank in run.ranks:
        if ordinal < len(rank.backwards):
            loss = rank.backwards[ordinal].get("loss")
            if loss is not None and not numpy.isfinite(loss):
                return True
    return False


def _divided(training: Training, many: Sequence[Update], whole: Sequence[Update]) -> Finding:
    one = law(training, whole)
    last = many[0]
    windows = sorted({update.window for update in many})
    if one is not None and one.kind == "batches" and close(one.constant * max(windows), 1.0, 2e-3):
        return Finding(
            check="accumulation",
            outcome="ok",
            says=f"{numbers(windows)} batches an update, divided by {max(windows)}: an incomplete window moves less",
        )
    if one is not None and one.kind == "batches" and close(one.constant * max(windows) ** 2, 1.0, 2e-3):
        over = False
    elif one is not None and one.kind == "batches":
        over = one.factor(last) > 1
    elif one is not None and one.kind == "one" and not close(one.constant, 1.0, 2e-3) and len(windows) == 1:
        divided = _divisions(last)
        if divided == 1:
            return _fine(last, windows, one.constant)
        over = divided == 0
        if divided == 0 and one.constant < last.window / 2:
            return _fine(last, windows, one.constant)
    elif one is not None and one.kind in ("processes", "scale", "samples"):
        return Finding(
            check="accumulation", outcome="ok", says=f"{numbers(windows)} batches an update, all weigh alike"
        )
    else:
        return _fine(last, windows, 1.0 if one is None else one.constant)
    found = (last.scales or [0.0])[0]
    return Finding(
        check="accumulation",
        outcome="FAIL",
        says=f"{times(found)}: "
        + ("not divided by" if over else "divided twice by")
        + f" the {last.window} batches of an update",
        place=training.place(last.shares[0].backwards[-1]),
        expected=f"the mean over {last.window} batches: each loss divided by {last.window}, once",
        found=f"the gradient of that mean, {times(found)}",
        effect=f"the rate acts as if it were {times(found)}; clipping and weight decay see another gradient",
        change=f"divide the loss by {last.window}, the batches of the window"
        if over
        else "divide by hand or let the framework do it: one of them",
        known=("axolotl#1100",) if over else (),
    )


def _divisions(update: Update) -> int:
    """How often the loss or the gradient was divided by the number of batches of the update."""
    terms = update.shares[0].terms or [[]]
    wanted = 1 / update.window
    inside = sum(close(constant, wanted, 1e-4) for constant in terms[0][0].constants) if terms[0] else 0
    return inside + int(close(update.ratio * update.processes * update.scaling, wanted, 2e-3))


def _fine(update: Update, windows: Sequence[int], constant: float) -> Finding:
    factor = "" if close(constant, 1.0, 2e-3) else f", {times(constant)} in the loss"
    return Finding(
        check="accumulation",
        outcome="ok",
        says=f"{numbers(windows)} batches an update, {count(update.samples, 'sample')}, divided once{factor}",
    )
