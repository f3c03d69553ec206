"""Resume: does a training that was killed and started again go on as if nothing had happened?

The uninterrupted run is the reference. The resumed run's first weights tell at which of its updates it goes on; from
there on samples, rates, losses and weights must be the same. What differs first says what was not restored::

    weights    equal to none of the reference's        the network
    samples    those of another place                  the position in the epoch, or its order
    rate                                               the schedule
    update     though its gradient is the same         the optimiser's state
    loss       though samples and weights are          random numbers: dropout, augmentation
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from squall.verify.checks.training import Training, count
from squall.verify.finding import Finding
from squall.verify.trace import Array, Event, Rank, Run, rate_of

_EQUAL = 1e-6


@dataclass(frozen=True)
class Resumed:
    """A run that went on after a kill.

    Attributes:
        whole: the uninterrupted run with as many processes as the killed one.
        after: what was started after the kill.
        killed_at: the update after which all ranks were killed.
    """

    whole: Run
    after: Run
    killed_at: int


def resume(training: Training, same: Resumed, others: Sequence[Resumed] = ()) -> Finding:
    """Does a killed training go on as if nothing had happened?"""
    start = _start(same)
    first = same.after.first.steps[0]
    place = training.place(first)
    if start is None:
        return _fail(
            training, first, "the weights", "its first weights are those of no update of the uninterrupted run"
        )
    if start == 0:
        return Finding(
            check="resume",
            outcome="FAIL",
            says=f"begins anew: killed after update {same.killed_at}, and update 0 again",
            place=place,
            expected=f"it goes on from the checkpoint, shortly before update {same.killed_at}",
            found="the first weights are those of the start",
            effect="all that was computed before is lost, and nothing says so",
            change="load the checkpoint where it is there, on all ranks, before DDP is made",
        )
    compared = min(len(same.whole.first.steps) - start, len(same.after.first.steps))
    for ahead in range(compared):
        finding = _differs(training, same, start, ahead)
        if finding is not None:
            return finding
    said = (
        f"killed after update {same.killed_at}, goes on at {start}: samples, rates, losses and weights equal in "
        f"{count(compared, 'update')}"
    )
    for other in others:
        finding = _other(training, other, said)
        if finding is not None:
            return finding
    if others:
        said += f"; also with {', '.join(str(other.after.processes) for other in others)} processes"
    return Finding(check="resume", outcome="ok", says=said)


def _start(one: Resumed) -> int | None:
    """The update of the uninterrupted run before which it had the weights with which the other begins."""
    rank, after = one.whole.first, one.after.first
    begin = after.steps[0]
    for number, step in enumerate(rank.steps):
        if _apart(rank, step, after, begin, "before") <= _EQUAL:
            return number
    return None


def _apart(one: Rank, step: Event, other: Rank, its: Event, name: str) -> float:
    """The largest relative difference of any parameter's numbers in two updates; infinite where some are missing."""
    worst = 0.0
    for index in step["group_of"]:
        first, second = one.array(step, f"{name}.{index}"), other.array(its, f"{name}.{index}")
        if first is None and second is None:
            continue
        if first is None or second is None or first.shape != second.shape:
            return float("inf")
        worst = max(worst, _difference(first, second))
    return worst


def _difference(first: Array, second: Array) -> float:
    both = ~(numpy.isnan(first) & numpy.isnan(second))
    size = float(numpy.abs(first[both]).max(initial=0.0)) or 1.0
    return float(numpy.abs(first[both] - second[both]).max(initial=0.0)) / size


def _differs(training: Training, one: Resumed, start: int, ahead: int) -> Finding | None:
    """What an update of the resumed run does otherwise than the same update of the uninterrupted one."""
    for rank, after in zip(one.whole.ranks, one.after.ranks, strict=True):
        step, its = rank.steps[start + ahead], after.steps[ahead]
        wanted, read = _samples(rank, step), _samples(after, its)
        if wanted is not None and read is not None and not numpy.array_equal(wanted, read):
            again = _earlier(rank, start + ahead, read)
            return _fail(
                training,
                its,
                "its place in the data",
                f"update {start + ahead} reads other samples on rank {rank.number} than the uninterrupted run"
                + (f": those of update {again}, which it has seen" if again is not None else ""),
                loader=_pass_of(after, its),
            )
        if _rates_differ(step, its):
            later = ahead + 1 < min(len(rank.steps) - start, len(after.steps))
            passing = later and not _rates_differ(rank.steps[start + ahead + 1], after.steps[ahead + 1])
            return _fail(
                training,
                its,
                "the optimiser's state"
                if passing
                else "the schedule",  # its groups hold the rate, which then comes back
                f"the rate of update {start + ahead} is {rate_of(its):.4g} instead of {rate_of(step):.4g}"
                + (": its groups hold it, and momentum or averages begin at zero too" if passing else ""),
            )
    rank, after = one.whole.first, one.after.first
    step, its = rank.steps[start + ahead], after.steps[ahead]
    if _apart(rank, step, after, its, "grad") > 1e-4:
        return Finding(
            check="resume",
            outcome="note",
            says=f"the same samples and rates, and other losses from update {start + ahead} on: generators, of "
            "dropout or augmentation, are not restored",
            place=training.place(its),
        )
    difference = _apart(rank, step, after, its, "after")
    if difference > 1e-5:
        return _fail(
            training,
            its,
            "the optimiser's state",
            f"update {start + ahead} has the same gradient and rate and gives weights {difference:.0e} apart: momentum "
            "or averages begin at zero",
        )
    return None


def _rates_differ(one: Event, other: Event) -> bool:
    pairs = zip(one["groups"], other["groups"], strict=False)
    return any(abs(a["lr"] - b["lr"]) > _EQUAL * max(abs(a["lr"]), abs(b["lr"])) for a, b in pairs)


def _samples(rank: Rank, step: Event) -> Array | None:
    """The indices that an update's batches held on a rank."""
    found = []
    for backward in rank.contributing(step):
        indices = rank.indices(backward.get("batch"))
        if indices is None:
            return None
        found.append(indices)
    return numpy.concatenate(found) if found else None


def _earlier(rank: Rank, before: int, read: Array) -> int | None:
    """The earlier update that read the same samples."""
    for number, step in enumerate(rank.steps[:before]):
        samples = _samples(rank, step)
        if samples is not None and numpy.array_equal(samples, read):
            return number
    return None


def _pass_of(rank: Rank, step: Event) -> Event | None:
    for backward in rank.contributing(step):
        batch = backward.get("batch")
        if batch is not None and rank.events[batch].get("of") is not None:
            return rank.events[rank.events[batch]["of"]]
    return None


def _fail(training: Training, step: Event, what: str, found: str, loader: Event | None = None) -> Finding:
    return Finding(
        check="resume",
        outcome="FAIL",
        says=f"{what} {'are' if what.endswith('weights') else 'is'} not restored: {found.partition(':')[0]}",
        place=training.place(loader or step),
        expected="the same samples, rates, losses and weights as without the interruption",
        found=found,
        effect="a run that was interrupted is another run; with every restart again",
        change={
            "the weights": "save and load the network's state_dict, before DDP is made or through .module",
            "its place in the data": "save epoch and batch, set_epoch on resume, and skip what was seen",
            "the schedule": "save and load the schedule's state_dict",
            "the optimiser's state": "save and load the optimiser's state_dict",
        }[what],
        known=("streaming#880", "NeMo-Automodel#3427", "openfold#181"),
    )


def _other(training: Training, one: Resumed, said: str) -> Finding | None:
    """A resumed run with another number of processes: equal bits for Squall; elsewhere it must go on where it was."""
    processes = count(one.after.processes, "process")
    if not one.after.first.steps:
        return Finding(check="resume", outcome="note", says=f"{said}; with {processes} it makes no update")
    start = _start(one)
    place = training.place(one.after.first.steps[0])
    if start is None or start == 0:
        return Finding(check="resume", outcome="note", says=f"{said}; with {processes} it begins anew", place=place)
    if not one.after.first.about.get("lockstep"):
        return None
    for ahead, its in enumerate(one.after.first.steps):
        if start + ahead >= len(one.whole.first.steps):
            break
        step = one.whole.first.steps[start + ahead]
        if _apart(one.whole.first, step, one.after.first, its, "after") > 0:
            return Finding(
                check="resume",
                outcome="FAIL",
                says=f"with {processes} other weights come out of update {start + ahead}",
                place=place,
                expected="the same bits with any number of processes",
                found=f"killed with {one.whole.processes}, resumed with {one.after.processes}",
                effect="a result depends on the machines",
                change="report it: Squall promises equal bits",
            )
    return None
