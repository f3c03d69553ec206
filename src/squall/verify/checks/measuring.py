"""Evaluation: is every sample of the evaluation set counted once?

Two things spoil a number that all ranks measure together: samplers that read some samples twice to give all ranks as
many, and means of means over unequal shares. The first is known from the indices, unless what was added is taken away
after gathering. The second shows in what ranks tell each other: a single number that is a mean over the rank's share.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy

from squall.verify.checks.passes import Pass, training_passes
from squall.verify.checks.training import Training, count
from squall.verify.finding import Finding
from squall.verify.trace import Array, Event, Rank, Run


@dataclass(frozen=True)
class Measured:
    """One evaluation: the pass of each rank that took part, and what was told afterwards."""

    run: Run
    passes: Sequence[tuple[Rank, Event]]
    told: Sequence[Sequence[Event]]
    beside: Sequence[Array] = ()
    """What was read of the same data in other passes of the same evaluation."""

    @property
    def together(self) -> Pass:
        """As one pass of those that took part."""
        return Pass(Run(len(self.passes), [rank for rank, _ in self.passes]), [event for _, event in self.passes])

    @property
    def first(self) -> Event:
        """The pass of the first that took part."""
        return self.passes[0][1]


def evaluations(run: Run) -> list[Measured]:
    """The evaluations of a run, in order."""
    found = []
    by_rank = [(rank, _passes(rank)) for rank in run.ranks]
    for place in range(max((len(passes) for _, passes in by_rank), default=0)):
        some = [(rank, passes[place]) for rank, passes in by_rank if place < len(passes)]
        found.append(Measured(run, some, [_told(rank, event) for rank, event in some], _beside(some, by_rank)))
    return found


def _beside(some: Sequence[tuple[Rank, Event]], by_rank: Sequence[tuple[Rank, Sequence[Event]]]) -> list[Array]:
    """What ranks read of the same data in other passes with no training between."""
    found = []
    data = some[0][1]["data"]
    for (rank, event), (_, passes) in zip(some, by_rank, strict=False):
        marks = [backward["n"] for backward in rank.backwards]
        epoch = sum(mark < event["n"] for mark in marks)
        for other in passes:
            if other is not event and other["data"] == data and sum(mark < other["n"] for mark in marks) == epoch:
                array = rank.array(other, "indices")
                if array is not None:
                    found.append(array)
    return found


def _passes(rank: Rank) -> list[Event]:
    """The passes in which a network was called without gradients, and none was trained.

    Those that were broken off, to look whether all works, count only where the data was never read to its end.
    """
    called = {
        rank.events[event["batch"]].get("of")
        for event in rank.of("forward")
        if not event["grad"] and event["batch"] is not None
    }
    trained = {event["n"] for data in rank.training_data for event in rank.passes(data, training=True)}
    found = [
        event
        for event in rank.of("pass")
        if event["n"] in called and event["n"] not in trained and event["n"] < rank.observed and event["size"] > 0
    ]
    given = Counter(event["of"] for event in rank.of("batch"))
    whole = [event for event in found if given[event["n"]] >= len(event["run"])]
    read = {event["data"] for event in whole}
    return [event for event in found if event in whole or event["data"] not in read]


def _told(rank: Rank, event: Event) -> list[Event]:
    """What was exchanged from an evaluation's begin to the next pass or backward pass."""
    end = next((other["n"] for other in rank.of("pass", "backward") if other["n"] > event["n"]), len(rank.events))
    return [other for other in rank.of("exchange", "gathered") if event["n"] < other["n"] < end]


def evaluation(training: Training) -> Finding:
    """Is every sample of the evaluation set counted once?"""
    last: Measured | None = None
    noted: Finding | None = None
    for run in training.runs:
        for one in evaluations(run):
            if last is None or one.together.size >= last.together.size:  # not the few that a second pass adds
                last = one
            finding = _judge(training, one)
            if finding is not None and finding.outcome == "FAIL":
                return finding
            noted = noted or finding
    if noted is not None:
        return noted
    if last is None:
        return Finding(check="evaluation", outcome="--", says="no evaluation was seen")
    who = "by rank 0 alone" if len(last.passes) == 1 < last.run.processes else "once"
    if len(last.passes) > 1 and _all_by_each(last):
        who = "by each rank for itself"
    return Finding(
        check="evaluation", outcome="ok", says=f"{last.together.size:,} of {last.together.size:,} samples counted {who}"
    )


def _all_by_each(one: Measured) -> bool:
    together = one.together
    return all(len(set(order.tolist())) == together.size for order in together.orders)


def _judge(training: Training, one: Measured) -> Finding | None:
    together = one.together
    if together.split_apart or any(trained.split_apart for trained in training_passes(one.run)):
        return Finding(
            check="evaluation",
            outcome="note",
            says="each rank holds out samples of its own: see epoch coverage",
            place=training.place(one.first),
        )
    if len(one.passes) == 1 or _all_by_each(one):
        return _missing(training, one) if together.missing and not _elsewhere(one) else None
    if together.repeated and not together.missing:
        return _padded(training, one)
    if together.missing and not _elsewhere(one):
        return _missing(training, one)
    return _mean_of_means(training, one) or _untold(training, one)


def _untold(training: Training, one: Measured) -> Finding | None:
    """Ranks measure a share each, and tell each other nothing of it; Squall's do in a way of their own."""
    if any(one.told) or one.run.first.about.get("lockstep"):
        return None
    return Finding(
        check="evaluation",
        outcome="note",
        says=f"{one.together.size:,} samples are read once, and ranks exchange nothing of it: a number is that of one "
        f"rank's {len(one.together.orders[0]):,}",
        place=training.place(one.first),
    )


def _elsewhere(one: Measured) -> bool:
    """Whether what a pass leaves out is measured in another one beside it."""
    if not one.beside:
        return False
    together = one.together
    left = numpy.flatnonzero(together.counts == 0)
    indices = left if together.held is None else together.held[left]
    return bool(numpy.isin(indices, numpy.concatenate(list(one.beside))).all())


def _cut_by_hand(script: str) -> bool:
    """Whether the script cuts what it has gathered: ``gathered[:length]``."""
    try:
        tree = ast.parse(Path(script).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return False
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            function = node.value.func
            if isinstance(function, ast.Attribute) and "gather" in function.attr:
                names |= {name.id for to in node.targets for name in ast.walk(to) if isinstance(name, ast.Name)}
    cuts = (node for node in ast.walk(tree) if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice))
    return any(isinstance(node.value, ast.Name) and node.value.id in names for node in cuts)


def _padded(training: Training, one: Measured) -> Finding | None:
    together, size = one.together, one.together.size
    counted, processes = size + together.repeated, count(one.run.processes, "process")
    gathered = {event["what"] for events in one.told for event in events if event["event"] == "gathered"}
    exchanged = [event for events in one.told for event in events if event["event"] == "exchange"]
    place = training.place(one.first)
    if "gather_for_metrics" in gathered:
        return None
    frameworks = one.run.first.about.get("frameworks", ())
    numbers = [value for event in exchanged for value in event.get("result") or ()]
    if any(abs(value - size) < 1e-3 for value in numbers):
        return None  # what was added is not counted
    whole = bool(gathered) or any((event.get("numel") or 0) > 16 or "gather" in event["what"] for event in exchanged)
    if "Lightning" in frameworks or (whole and (not gathered or _cut_by_hand(training.script))):
        what = (
            "Lightning's sampler adds them"
            if "Lightning" in frameworks
            else "gathered: whether they are taken away is not seen"
        )
        return Finding(
            check="evaluation",
            outcome="note",
            says=f"{counted:,} of {size:,} samples with {processes}: {together.repeated:,} twice; {what}",
            place=place,
        )
    change = (
        "gather_for_metrics instead of gather"
        if gathered
        else "give each rank dataset[rank::world] and add up sums and counts"
    )
    return Finding(
        check="evaluation",
        outcome="FAIL",
        says=f"{counted:,} samples are counted of {size:,}, with {processes}: {together.repeated:,} twice",
        place=place,
        expected=f"each of {size:,} samples once",
        found=f"{together.sampler} adds {together.repeated:,} to give all ranks as many, and nothing takes them away",
        effect="the result changes with the number of processes; with a small set by whole tenths of a per cent",
        change=change,
        known=("pytorch#25162",),
    )


def _missing(training: Training, one: Measured) -> Finding:
    together = one.together
    dropped = bool(one.first["drop_last"]) or bool(one.first["sampler"].get("drop_last"))
    processes = count(one.run.processes, "process")
    says = f"{together.missing:,} of {together.size:,} samples are not measured, with {processes}"
    if dropped or one.run.processes == 1:
        return Finding(
            check="evaluation",
            outcome="note",
            says=f"{says}: " + ("the last batch is dropped" if dropped else f"{together.sampler} leaves them out"),
            place=training.place(one.first),
        )
    return Finding(
        check="evaluation",
        outcome="FAIL",
        says=says,
        place=training.place(one.first),
        expected=f"each of {together.size:,} samples once",
        found=f"{together.missing:,} are in the share of no rank, of {len(one.passes)} that measure",
        effect="the result is that of another set, and changes with the number of processes",
        change="give each rank dataset[rank::world], and add up sums and counts",
    )


def _mean_of_means(training: Training, one: Measured) -> Finding | None:
    """A mean of the ranks' means over shares that are not equal."""
    shares = [len(order) for order in one.together.orders]
    if len(set(shares)) == 1:
        return None
    for events in zip(*one.told, strict=False):
        if any(event["event"] != "exchange" or event["what"] != "all_reduce" for event in events):
            continue
        values = [event.get("values") or [] for event in events]
        if any(len(value) != 1 for value in values) or any(event["op"] not in ("SUM", "AVG") for event in events):
            continue
        if any(_counts(event, share) for event, share in zip(events, shares, strict=True)):
            continue
        means = all(event["means"][0] for event in events)
        fractions = all(_is_fraction(value[0], share) for value, share in zip(values, shares, strict=True))
        if means or fractions:
            return Finding(
                check="evaluation",
                outcome="FAIL",
                says=f"a mean of the ranks' means over unequal shares: {', '.join(map(str, shares))} samples",
                place=training.place(events[0]),
                expected=f"the sum over all {one.together.size} samples, divided by their count",
                found=f"with {count(one.run.processes, 'process')} each rank's mean is added up; a sample of the "
                f"smallest share weighs {max(shares) / min(shares):.3g} times one of the largest",
                effect="the result changes with the number of processes, in the third digit and below",
                change="all-reduce the sum and the count, and divide then",
                known=("fairchem#269",),
            )
    return None


def _counts(event: Event, share: int) -> bool:
    return bool(event.get("values")) and abs(event["values"][0] - share) < 1e-6


def _is_fraction(value: float, share: int) -> bool:
    """Whether a number is a count over a share: 0.84 of 25."""
    hits = value * share
    return 0 <= value <= 1 and abs(hits - round(hits)) < 1e-3 and not numpy.isclose(value, round(value))
