"""Epoch coverage and order: is each sample read once an epoch, by some rank, and in a new order each time?

The order of a whole pass is known from the loader's sampler, also where only some of its batches were run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy

from squall.verify import edits
from squall.verify.checks.training import Training, count
from squall.verify.finding import Finding
from squall.verify.trace import Array, Event, Rank, Run


@dataclass(frozen=True)
class Pass:
    """One pass over a data set as all ranks made it."""

    run: Run
    events: Sequence[Event]

    @property
    def size(self) -> int:
        """Of the data set, or of the part of it that is dealt out."""
        return int(self.events[0]["size"]) if self.held is None else len(self.held)

    @cached_property
    def parts(self) -> list[Array] | None:
        """What each rank's loader can read at all, where it is a part of a data set; None where it is all of it."""
        found = [rank.array(event, "held") for rank, event in zip(self.run.ranks, self.events, strict=True)]
        some = [part for part in found if part is not None]
        return some if len(some) == len(found) else None

    @cached_property
    def held(self) -> Array | None:
        """The part that is dealt out: the same on all ranks (a split), or all ranks' shares of one. None: all of it.

        Shares that leave out less than a batch on all ranks are shares of the whole.
        """
        if self.parts is None:
            return None
        if all(numpy.array_equal(part, self.parts[0]) for part in self.parts[1:]):
            return self.parts[0]
        together = numpy.unique(numpy.concatenate(self.parts))
        return together if int(self.events[0]["size"]) - len(together) >= self.rank_batches else None

    @property
    def split_apart(self) -> bool:
        """Whether the ranks' parts are different and overlap: each has split the data set for itself."""
        if self.parts is None or len(self.parts) < 2:
            return False
        same = all(numpy.array_equal(part, self.parts[0]) for part in self.parts[1:])
        return not same and len(numpy.unique(numpy.concatenate(self.parts))) < sum(len(part) for part in self.parts)

    @cached_property
    def orders(self) -> list[Array]:
        """The indices that each rank reads, in order."""
        found = []
        for rank, event in zip(self.run.ranks, self.events, strict=True):
            array = rank.array(event, "indices")
            found.append(array if array is not None else numpy.zeros(0, dtype=numpy.int64))
        return found

    @cached_property
    def counts(self) -> Array:
        """How often each index is read, by all ranks together."""
        together = numpy.concatenate(self.orders)
        whole = int(self.events[0]["size"])
        inside: Array = together[(together >= 0) & (together < whole)]
        counts = numpy.bincount(inside, minlength=whole)
        return counts if self.held is None else counts[self.held]

    @property
    def missing(self) -> int:
        """Samples that nobody reads."""
        return int((self.counts == 0).sum())

    @property
    def repeated(self) -> int:
        """Readings beyond the first of each sample."""
        return int((self.counts[self.counts > 1] - 1).sum())

    @property
    def sampler(self) -> str:
        """Its class."""
        return str(self.events[0]["sampler"]["class"])

    @property
    def rank_batches(self) -> int:
        """Samples of one batch on all ranks."""
        return int(self.events[0].get("batch_size") or max(self.events[0]["sizes"], default=1)) * self.run.processes


def training_passes(run: Run) -> list[Pass]:
    """The passes over the data that is trained on most; those that all ranks began."""
    data = run.first.training_data[:1]
    return _together(run, [_trained(rank, data[0]) for rank in run.ranks]) if data else []


def _trained(rank: Rank, data: int) -> list[Event]:
    return [
        event
        for event in rank.passes(data, training=True)
        if event["n"] < rank.observed and event["size"] > 0 and not event.get("endless")
    ]


def _together(run: Run, passes: Sequence[Sequence[Event]]) -> list[Pass]:
    return [Pass(run, events) for events in zip(*passes, strict=False)]


def coverage(training: Training) -> Finding:
    """Is each sample read once an epoch, by one rank?"""
    notes = []
    seen: list[Pass] = []
    for run in training.runs:
        for one in training_passes(run):
            seen.append(one)
            if one.split_apart:
                return _split_apart(training, one)
            if not one.missing and not one.repeated:
                continue
            if "Weighted" in one.sampler or _replaces(one):
                return Finding(
                    check="epoch coverage",
                    outcome="note",
                    says=f"{one.sampler} draws with replacement: no sample is certain",
                )
            if _own_shards(one):
                return Finding(
                    check="epoch coverage",
                    outcome="note",
                    says="each rank has data of its own: the same indices are other samples",
                )
            if not _is_padding(one):
                return _uncovered(training, one)
            notes.append(one)
    same = _same_inputs(training) or _read_again(training)
    if same is not None and not notes:
        return same
    if not seen:
        return Finding(check="epoch coverage", outcome="--", says="no DataLoader with known indices was trained from")
    if not notes:
        return Finding(check="epoch coverage", outcome="ok", says=f"each of {seen[0].size:,} samples once an epoch")
    worst = max(notes, key=lambda one: one.missing + one.repeated)
    said = [f"{worst.size:,} samples"]
    if worst.repeated:
        said.append(f"{worst.repeated} of them twice")
    if worst.missing:
        said.append(f"{worst.missing} not in every epoch")
    why = "pads" if worst.repeated else "drops the rest"
    if worst.repeated and worst.missing:
        why = "pads, and an incomplete batch is dropped"
    return Finding(
        check="epoch coverage",
        outcome="note",
        says=f"{', '.join(said)} with {worst.run.processes} processes: {worst.sampler} {why} to give all ranks as many",
    )


def _same_inputs(training: Training) -> Finding | None:
    """Ranks whose networks are called with the same numbers, wherever those come from."""
    for run in training.several:
        calls = [[event for event in rank.of("forward") if event["grad"] and event.get("input")] for rank in run.ranks]
        together = list(zip(*calls, strict=False))
        same = [events for events in together if len({event["input"] for event in events}) == 1]
        if len(together) > 3 and len(same) > 0.9 * len(together):
            return Finding(
                check="epoch coverage",
                outcome="FAIL",
                says=f"every rank computes the same batch, in {len(same)} of {count(len(together), 'step')}",
                place=training.place(same[0][0]),
                expected="each rank computes samples of its own",
                found=f"with {run.processes} processes the networks' inputs are equal on all ranks",
                effect=f"{run.processes} processes do the work of one: each batch is averaged with itself",
                change="let each rank draw its own share: seed by rank, or cut one order by rank::world",
            )
    return None


def _read_again(training: Training) -> Finding | None:
    """Samples of an iterable data set that come several times in one pass: all of them, so not by chance."""
    for run in training.runs:
        rows = []
        place = None
        for rank in run.ranks:
            for event in rank.of("batch"):
                array = rank.array(event, "rows") if event.get("round") == 0 else None
                if array is not None and len(array):
                    rows.append(array)
                    place = place or training.place(rank.backwards[0]) if rank.backwards else None
        if not rows:
            continue
        _, counts = numpy.unique(numpy.concatenate(rows), return_counts=True)
        again = int((counts > 1).sum())
        if len(counts) > 20 and again > 0.9 * len(counts):
            return Finding(
                check="epoch coverage",
                outcome="FAIL",
                says=f"{again:,} of {len(counts):,} samples come {int(numpy.median(counts))} times in one pass",
                place=place,
                expected="each sample once, from one rank and one loader process",
                found=f"with {run.processes} processes the iterable data set gives the same samples to several readers",
                effect="an epoch is that many times longer than meant, and minibatches hold copies",
                change="cut the iteration by rank and by get_worker_info().id",
            )
    return None


def _replaces(one: Pass) -> bool:
    """Whether even one rank reads samples several times: drawing with replacement."""
    return all(len(order) > 20 and len(numpy.unique(order)) < 0.9 * len(order) for order in one.orders)


def _is_padding(one: Pass) -> bool:
    """Whether what is missing or repeated is no more than it takes to give all ranks as many."""
    processes = one.run.processes
    if one.sampler == "DistributedSampler":
        most = processes - 1
        left = processes - 1 + (one.rank_batches if one.events[0]["drop_last"] else 0)
    else:
        most = left = one.rank_batches
        accelerate = "Accelerate" in one.run.first.about.get("frameworks", ())
        if accelerate and not one.missing and one.repeated < one.rank_batches:
            return True  # it fills the last batches of all ranks from the start
    shares = [len(set(order.tolist())) for order in one.orders]
    if processes > 1 and min(shares) == one.size:
        return False  # everybody reads everything
    if processes > 1 and most >= one.size / 4:
        most = left = one.size // 4
    return one.repeated <= most and one.missing <= left


def _split_apart(training: Training, one: Pass) -> Finding:
    parts = one.parts or []
    both = len(numpy.intersect1d(parts[0], parts[1]))
    return Finding(
        check="epoch coverage",
        outcome="FAIL",
        says=f"each rank splits the data set for itself: ranks 0 and 1 share {both:,} of {len(parts[0]):,} samples",
        place=training.place(one.events[0]),
        expected="one split into training and held-out samples, on all ranks",
        found=f"with {one.run.processes} processes the ranks' loaders read different parts of {one.events[0]['kind']}",
        effect="what one rank holds out another trains on, so that the evaluation is no longer one; samples are seen "
        "more or less often",
        change="random_split(..., generator=torch.Generator().manual_seed(seed)), the same on all ranks",
    )


def _own_shards(one: Pass) -> bool:
    """Whether equal indices mean different samples on different ranks."""
    if one.run.processes < 2:
        return False
    held: list[dict[int, int]] = []
    for rank, event in zip(one.run.ranks, one.events, strict=True):
        rows = rank.items[(rank.items[:, 1] == event["data"]) & (rank.items[:, 4] == 0) & (rank.items[:, 5] == 0)]
        held.append({int(row[3]): int(row[6]) for row in rows})
    both = set(held[0]) & set(held[1])
    return len(both) > 3 and all(held[0][index] != held[1][index] for index in both)


def _uncovered(training: Training, one: Pass) -> Finding:
    processes = one.run.processes
    same = processes > 1 and all(numpy.array_equal(order, one.orders[0]) for order in one.orders[1:])
    everything = min(len(set(order.tolist())) for order in one.orders) == one.size
    if same or everything:
        says = f"every rank reads all {one.size:,} samples: each is seen {processes} times an epoch"
        found = f"no rank's share: {one.sampler} gives " + (
            "all ranks the same order" if same else "each rank all of them"
        )
        effect = f"{processes} processes do {processes} times the work of one; epochs, and schedules in epochs, are "
        effect += f"{processes} times longer than meant" + ("; every batch is averaged with itself" if same else "")
    else:
        says = (
            f"{one.missing:,} of {one.size:,} samples are never seen in an epoch, {one.repeated:,} are seen again"
            f", with {processes} processes"
        )
        found = f"the ranks' shares overlap: {one.sampler} cuts them from different orders"
        effect = "an epoch is a draw with replacement; other samples are missed each time, and coverage differs with "
        effect += "the number of processes"
    return Finding(
        check="epoch coverage",
        outcome="FAIL",
        says=says,
        place=training.place(one.events[0]),
        expected="each sample once an epoch, by one rank (a few more or less where shares are made equal)",
        found=found,
        effect=effect,
        change="DistributedSampler(dataset) with the same seed on all ranks, and set_epoch(epoch) in each epoch",
    )


def order(training: Training) -> Finding:
    """Do epochs have different orders?"""
    fails: list[tuple[Pass, Pass, float]] = []
    compared = 0
    stored = False
    for run in training.runs:
        passes = training_passes(run)
        if len(passes) < 2:
            continue
        first, second = passes[0], passes[1]
        shares = []
        for one, other in zip(first.orders, second.orders, strict=True):
            shortest = min(len(one), len(other))
            if shortest:
                shares.append(float((one[:shortest] == other[:shortest]).mean()))
                stored = stored or bool((numpy.diff(one[:shortest]) > 0).all())
        compared += 1
        if shares and min(shares) > 0.5:
            fails.append((first, second, min(shares)))
    if not compared:
        return Finding(check="epoch order", outcome="--", says="fewer than two epochs with known indices")
    if not fails:
        size = sum(len(one) for one in first.orders)
        return Finding(check="epoch order", outcome="ok", says=f"a new one each epoch, over {count(size, 'position')}")
    first, _, share = fails[-1]
    size = sum(len(one) for one in first.orders)
    if stored:
        return Finding(
            check="epoch order",
            outcome="note",
            says="samples come in the order in which they are stored, in every epoch",
            place=training.place(first.events[0]),
        )
    distributed = first.sampler == "DistributedSampler"
    place = training.place(first.events[0])
    return Finding(
        check="epoch order",
        outcome="FAIL",
        says=f"epoch 2 repeats epoch 1: {round(share * size):,} of {size:,} positions equal; by chance about 1",
        place=place,
        expected="a new permutation in each epoch",
        found="DistributedSampler.set_epoch is never called, so each epoch has the order of epoch 0"
        if distributed
        else f"{first.sampler} gives the same order in each epoch",
        effect="the same samples meet in every epoch; usually 0 to 1 points of accuracy, and never an error message",
        change="sampler.set_epoch(epoch) at the start of each epoch"
        if distributed
        else "let the order depend on the epoch",
        edits=edits.set_epoch(place) if distributed else (),
        known=("pytorch#31771", "pytorch#31232") if distributed else (),
    )
