"""One pass over a data set, put together from what all ranks read of it.

The order of a whole pass is known from the loader's sampler, also where only some of its batches were run. What may be
read at all is the data set, or the part of it that was dealt out: a `Subset`, or the `indices` of a sampler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy

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
        found = [
            _part(rank, event, order)
            for rank, event, order in zip(self.run.ranks, self.events, self.orders, strict=True)
        ]
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
        """Whether the ranks' parts are different and overlap: each has split the data set for itself.

        An overlap of less than a batch on all ranks is one that makes shares equal.
        """
        if self.parts is None or len(self.parts) < 2:
            return False
        same = all(numpy.array_equal(part, self.parts[0]) for part in self.parts[1:])
        together = len(numpy.unique(numpy.concatenate(self.parts)))
        overlap = sum(len(part) for part in self.parts) - together
        return not same and overlap >= min(self.rank_batches, max(1, together // 4))

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

    @cached_property
    def left(self) -> int:
        """Batches that rank 0's loop has left in the loader, of those that it would have given."""
        event = self.events[0]
        taken = sum(int(batch["of"] == event["n"]) for batch in self.run.first.of("batch"))
        return max(0, len(event["run"]) - taken)

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


def _part(rank: Rank, event: Event, order: Array) -> Array | None:
    """The part of the data set that a rank's loader can read: its sampler's, if that reads no other; its `Subset`."""
    listed = rank.array(event, "listed")
    if listed is not None and numpy.isin(order, listed).all():
        return listed
    return rank.array(event, "held")
