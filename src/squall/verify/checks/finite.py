"""Numbers that are not finite: do all ranks do the same where a loss or gradient is not a number?"""

from __future__ import annotations

import numpy

from squall.verify.checks.training import Training, count
from squall.verify.finding import Finding
from squall.verify.trace import Run


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
