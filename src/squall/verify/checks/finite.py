"""Numbers that are not finite: do all ranks do the same where a loss or gradient is not a number?"""

from __future__ import annotations

import numpy

from squall.verify.checks.training import Training, count
from squall.verify.finding import Finding
from squall.verify.trace import Event, Run


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
        return Finding(check="non-finite", outcome="--", says=_quiet(training))
    return Finding(
        check="non-finite",
        outcome="note",
        says=f"{count(seen, 'backward pass')} not finite, none of which reached the weights: which samples go with it "
        "depends on the number of processes",
    )


def _quiet(training: Training) -> str:
    """What was looked at, where nothing was found."""
    read = any(event.get("loss") is not None for run in training.runs for event in run.first.backwards)
    return f"no {'loss and no ' if read else ''}gradient was infinite or NaN"


def _broken(run: Run) -> list[int]:
    """The backward passes in which the loss of some rank, or what it computed, was not finite."""
    return sorted({place for rank in run.ranks for place, event in enumerate(rank.backwards) if not _is_finite(event)})


def _is_finite(backward: Event) -> bool:
    loss = backward.get("loss")
    return (loss is None or bool(numpy.isfinite(loss))) and backward.get("finite", True) is True


def _handled(training: Training, run: Run, ordinal: int) -> Finding | None:
    """What the ranks did after a backward pass with a broken loss; None where all left the update out."""
    steps = [
        next(
            (step for step in rank.steps if any(rank.ordinal(b["n"]) == ordinal for b in rank.contributing(step))), None
        )
        for rank in run.ranks
    ]
    rank = next(one for one in run.ranks if ordinal < len(one.backwards) and not _is_finite(one.backwards[ordinal]))
    event = rank.backwards[ordinal]
    what = "gradient" if event.get("finite") is False and numpy.isfinite(event.get("loss") or 0.0) else "loss"
    place = training.place(event)
    if any(step is None for step in steps) and any(step is not None for step in steps):
        skipped = [number for number, step in enumerate(steps) if step is None]
        return Finding(
            check="non-finite",
            outcome="FAIL",
            says=f"rank {skipped[0]} leaves an update out alone, the others apply it",
            place=place,
            expected="all ranks leave the update out, or none",
            found=f"with {run.processes} processes rank {rank.number}'s {what} is not finite in backward pass "
            f"{ordinal}; {len(skipped)} of {run.processes} ranks did not step",
            effect="from then on the ranks have different weights, and no error says so",
            change="let all ranks decide alike: all-reduce (MIN) whether the loss is finite",
            known=("WeatherGenerator#2718",),
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
                says=f"a {what} that is not finite reaches the weights, at backward pass {ordinal}",
                place=place,
                expected="such an update is left out, on all ranks",
                found=f"after it the weights of rank {one.number} are not numbers",
                effect="the training is over, and goes on",
                change="look whether the reduced gradient is finite before the step, on all ranks",
                known=("torchtitan#4226",),
            )
    return None
