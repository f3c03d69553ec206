"""Accumulation: does an update of several batches weigh each of their samples alike, and lose none?

A batch's gradients may be thrown away before an update, carried into the next epoch's first, applied in two updates, or
divided by the number of batches twice, or not at all (`dividing.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from squall.verify.checks.dividing import dividing
from squall.verify.checks.law import laws, spans, usable
from squall.verify.checks.mixing import scales
from squall.verify.checks.training import Training, count
from squall.verify.finding import Finding
from squall.verify.trace import Event, Rank, Run
from squall.verify.update import Update, close

_EQUAL = 2e-3


def accumulation(training: Training) -> Finding:
    """Does an update of several batches weigh each of their samples alike, and lose none?"""
    found = usable(training)
    wrong = _dropped(training) or _again(training) or _carried(training, found)
    if wrong is not None:
        return wrong
    many = [update for update in found if update.window > 1]
    if not many:
        return Finding(check="accumulation", outcome="--", says="one batch an update")
    one_set = [update for update in many if len(_sets(update)) < 2]
    if not one_set:
        says = f"an update holds batches of {len(_sets(many[0]))} data sets, each with a loss of its own"
        return Finding(check="accumulation", outcome="--", says=says)
    read = [update for update in one_set if scales(update) is not None]
    if not read:
        return Finding(check="accumulation", outcome="--", says="the loss could not be read")
    whole = [update for update in found if scales(update) is not None and not spans(update)]
    fitted = laws(whole)
    judged = []
    for optimizer in dict.fromkeys(update.key[0] for update in read):
        mine = [update for update in read if update.key[0] == optimizer]
        judged.append(dividing(training, mine, fitted.get((optimizer, 0))))
    return max(judged, key=lambda finding: ("ok", "note", "FAIL").index(finding.outcome))


def _sets(update: Update) -> set[int]:
    """The data sets that an update's batches come from."""
    share = update.shares[0]
    batches = [group[0].get("batch") for group in share.batches]
    return {share.rank.events[batch]["data"] for batch in batches if batch is not None}


def _dropped(training: Training) -> Finding | None:
    """Batches whose gradients nothing has applied, of passes over the data in which others were applied."""
    for run in training.runs:
        rank = run.first
        applied = {number for step in rank.steps for part in step["from"].values() for number in part if number >= 0}
        used = {rank.events[number].get("batch") for number in applied}  # SAM looks twice, LBFGS often
        trained = {_pass(rank, batch) for batch in used}
        dropped = {number for event in rank.backwards for part in event.get("dropped", {}).values() for number in part}
        lost = [
            number
            for number in sorted(dropped - applied)
            if (batch := rank.events[number].get("batch")) not in used
            and _pass(rank, batch) in trained
            and not rank.events[number].get("closure")
            and not _skipped(rank, number)
            and not _somewhere_not_finite(run, rank.ordinal(number))
        ]
        if lost:
            return Finding(
                check="accumulation",
                outcome="FAIL",
                says=f"the gradients of {len(lost)} of {len(rank.backwards)} backward passes are thrown away",
                place=training.place(rank.events[lost[0]]),
                expected="every batch of an epoch enters an update",
                found=f"with {count(run.processes, 'process')}, {count(len(lost), 'batch')} of rank 0 had a backward "
                "pass, and then the gradients were emptied without an update",
                effect="these samples are read and computed for nothing, each epoch others",
                change="step also after an epoch's last batch, and divide by the batches of that window",
                known=("NVIDIA-NeMo/Automodel#2257", "ultralytics#11217"),
            )
    return None


def _pass(rank: Rank, batch: int | None) -> int | None:
    """The pass over the data that a batch belongs to."""
    return None if batch is None else rank.events[batch].get("of")


def _skipped(rank: Rank, number: int) -> bool:
    """Whether a loss scaler left out the update after a backward pass."""
    ends = [step["n"] for step in rank.of("step")]
    skips = [event["n"] for event in rank.of("scaler") if event["what"] == "skipped"]
    after = [end for end in (*ends, *skips) if end > number]
    return bool(after) and min(after) in skips


def _somewhere_not_finite(run: Run, ordinal: int) -> bool:
    """Whether any rank's loss or gradient in the same backward pass was not a number."""
    return any(_broken(rank.backwards[ordinal]) for rank in run.ranks if ordinal < len(rank.backwards))


def _broken(backward: Event) -> bool:
    loss = backward.get("loss")
    return not backward.get("finite", True) or (loss is not None and not numpy.isfinite(loss))


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
                    found=f"at update {rank.steps.index(step)} with {count(run.processes, 'process')} the gradients "
                    f"hold {len(step['from'][twice[0]])} backward passes, and some were applied before",
                    effect="a sum over all batches since the last zero_grad, as if by a momentum of 1, at weights that "
                    "are gone",
                    change="optimizer.zero_grad() before each update's first backward pass",
                    known=("pytorch#47175",),
                )
            before[step["optimizer"]] = step["from"]
    return None


def _carried(training: Training, found: Sequence[Update]) -> Finding | None:
    """Updates that hold batches of two epochs, and weigh otherwise than those that do not."""
    for update in found:
        if not spans(update):
            continue
        weights, usual = scales(update), _usual(update, found)
        if weights is None or usual is None or close(weights[0], usual, _EQUAL):
            continue
        return Finding(
            check="accumulation",
            outcome="FAIL",
            says=f"update {update.number} holds {update.window} batches of two epochs",
            place=training.place(update.step),
            expected="the last window of an epoch is applied in it, divided by what it holds",
            found="its gradients stay until the next epoch's first update, which holds "
            f"{count(update.window, 'batch')} on a rank and weighs {weights[0]:.3g}, where others weigh {usual:.3g}",
            effect="one update an epoch is too large, and made with weights that are gone",
            change="step also after an epoch's last batch, and divide by the batches of that window",
            known=("AnimaLoraStudio#305",),
        )
    return None


def _usual(update: Update, found: Sequence[Update]) -> float | None:
    """What updates of one epoch weigh, of as many batches if there are such; None where they differ."""
    others = [one for one in found if one.run is update.run and one.key[0] == update.key[0] and not spans(one)]
    alike = [one for one in others if one.window == update.window] or others
    weights = [scales(one) for one in alike]
    first = [one[0] for one in weights if one is not None]
    if not first or len(first) < len(weights) or not close(min(first), max(first), _EQUAL):
        return None
    return float(numpy.median(first))
