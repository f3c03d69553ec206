"""Accumulation: does an update of several batches weigh each of their samples alike, and lose none?

A batch's gradients may be thrown away before an update, carried into the next epoch's first, applied in two updates, or
divided by the number of batches twice, or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from squall.verify.checks.law import law, spans, usable
from squall.verify.checks.training import Training, count, numbers, times
from squall.verify.finding import Finding
from squall.verify.trace import Run
from squall.verify.update import Update, close


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
