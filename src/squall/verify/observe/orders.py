"""The order of one pass over a loader: read from the sampler as the loader does, noted whole, and cut where it is long.

::

    sampler    0 1 2 3 4 5 6 7 8 9    read as asked for; the rest of a pass that is broken off, at the end of the script
    cut        0 1 2             9    read at once
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, Subset

from squall.verify.observe import contents
from squall.verify.observe.blind import watching
from squall.verify.observe.places import hashed, listed_by, place_of
from squall.verify.observe.recorder import Recorder

_BEYOND = 1_000  # batches beyond four times those that a sampler says it has: it has no end

Begins = Callable[["Order"], dict[str, Any] | None]
"""Notes that a pass begins: its event; None where that could not be noted."""


class Watched:
    """Stands for a loader's sampler of batches: what it gives is noted, and cut where it is long."""

    def __init__(self, recorder: Recorder, begins: Begins, loader: DataLoader[Any], sampler: Any) -> None:
        self.sampler, self.recorder, self.begins = sampler, recorder, begins
        self.dataset: Any = loader.dataset
        self.batched, self.batch_size, self.workers = loader._auto_collation, loader.batch_size, loader.num_workers

    def __iter__(self) -> Iterator[Any]:
        return Order(self)

    def __len__(self) -> int:
        return cut(len(self.sampler), self.recorder, plain=is_plain(self.sampler))

    def __getattr__(self, name: str) -> Any:
        if name == "sampler":  # not there yet: it is being copied
            raise AttributeError(name)
        return getattr(self.sampler, name)


class Order:
    """The batches of one pass, each read from the sampler when the loader asks for it.

    A sampler may draw from the generators that the training draws from, so it is asked for its iterator where torch
    asks, and not read ahead; but for a pass that is cut. No pass has begun before its first batch is asked for.

    Attributes:
        event: the pass; None before it has begun.
        over: whether the sampler has come to its end.
        given: how many batches the script has got.
    """

    def __init__(self, watched: Watched) -> None:
        self.watched, self.recorder = watched, watched.recorder
        self.event: dict[str, Any] | None = None
        self.over = False
        self.given = 0
        self._begun = False
        self._source: Iterator[Any] = iter(watched.sampler)
        self._flat: list[int] = []
        self._size = -1
        self._kept = self.recorder.observing  # later only the batches' sizes are
        self._most = 0  # batches that are read to find the end

    def __iter__(self) -> Order:
        return self

    def __next__(self) -> Any:
        if not self._begun:
            self._begun = True
            self._begin()
            self._cut()
        batch = self._next()
        if self.event is None or not self.watched.batched or type(batch) is not list:
            return batch
        return Batch(batch, self.event["pass_"])

    @property
    def used_up(self) -> bool:
        """Whether the script has got all batches, not only the loader, which may read ahead."""
        return self.over and self.event is not None and self.given >= len(self.event["run"])

    @watching(None)
    def _begin(self) -> None:
        self.event = self.watched.begins(self)
        if self.event is None:
            return
        self._size = self.event["size"]
        listed = listed_by(self.watched.sampler, self.watched.dataset)
        if listed is not None and self._kept:
            self.recorder.keep(self.event, "listed", listed)

    def _cut(self) -> None:
        """Reads the whole pass at once, and gives only a part of it, where it is long."""
        sampler = self.watched.sampler
        length = contents.length(sampler)
        self._most = 4 * length + _BEYOND
        if self.event is not None:
            self.event |= {"endless": True} if length < 0 else {"batches": length}  # endless until its end is seen
        if not 0 <= cut(length, self.recorder, plain=is_plain(sampler)) < length:
            return
        whole = list(itertools.islice(self._source, self._most))
        for batch in whole:
            self._note(batch)
        self._close()
        run = _kept(len(whole), cut(len(whole), self.recorder, plain=is_plain(sampler)))
        if self.event is not None:
            self.event["run"] = run
        self._source = iter([whole[position] for position in run])

    def _next(self) -> Any:
        try:
            batch = next(self._source)
        except StopIteration:
            self._close()
            raise
        if not self.over:
            self._note(batch)
        return batch

    @watching(None)
    def _note(self, batch: Any) -> None:
        if self.event is None:
            return
        places: list[int] = []
        try:
            places = self._places(indices_of(batch, self.watched.batched))
        except Exception:
            self._size = self.event["size"] = -1  # nobody knows which there are
            raise
        finally:
            if self._kept:
                self._flat += places
            self.event["run"].append(len(self.event["sizes"]))
            self.event["sizes"].append(len(places))

    def _places(self, keys: list[Any]) -> list[int]:
        if type(self.watched.dataset) is not Subset and all(type(key) is int for key in keys):
            return keys
        found = [place_of(key, self.watched.dataset) for key in keys]
        if None in found and self.event is not None:
            self._size = self.event["size"] = -1
        return [hashed(key) if place is None else place for key, place in zip(keys, found, strict=True)]

    @watching(None)
    def _close(self) -> None:
        """The whole order is known."""
        if self.event is None or self.over:
            return
        self.event |= {"batches": len(self.event["sizes"]), "size": self._size}
        self.event.pop("endless", None)
        self.over = True
        self._keep()
        self._flat = []

    def _keep(self) -> None:
        if self.event is not None and self._kept:
            self.recorder.keep(self.event, "indices", numpy.asarray(self._flat, dtype=numpy.int64))

    def keep_known(self) -> None:
        """What is known of a pass that goes on, or was broken off, for a trace that may be the last that is saved.

        Its order is not whole, so that it says nothing of coverage: its size counts as not known until it is.
        """
        if self.event is not None and not self.over:
            self._keep()
            self.event["size"] = -1

    def finish(self) -> None:
        """Reads the rest, when the script is over: what the sampler draws now nobody misses.

        What says no length may have no end: it has no order that could be whole, and is not read on.
        """
        if self.over or self.event is None:
            return
        if self.event.get("endless"):
            self.event["size"] = self._size
            self._keep()
            return
        with suppress(Exception):  # it is the user's code
            for batch in itertools.islice(self._source, self._most):
                self._note(batch)
        self._close()


class Batch(list[Any]):
    """The indices of a batch, which take the number of their pass to the process that reads them."""

    def __init__(self, indices: Any, pass_: int) -> None:
        super().__init__(indices)
        self.pass_ = pass_

    def __reduce__(self) -> tuple[Any, ...]:
        return Batch, (list(self), self.pass_)


def indices_of(batch: Any, batched: bool) -> list[Any]:
    """What a sampler gives at once, as indices."""
    if isinstance(batch, list) or (batched and hasattr(batch, "__len__")):
        return list(batch)
    return [batch]


def cut(batches: int, recorder: Recorder, *, plain: bool) -> int:
    """How many batches of a pass are run.

    Arguments:
        plain: the loader goes over all samples, and may be dealt out to the processes later.
    """
    share = -(-batches // recorder.processes) if plain else batches
    steps = recorder.steps
    if share <= 2 * steps:
        return batches
    kept = steps + share % steps
    return kept * recorder.processes if plain else kept


def _kept(batches: int, run: int) -> list[int]:
    return list(range(batches)) if run >= batches else [*range(run - 1), batches - 1]


def is_plain(sampler: Any) -> bool:
    """Whether a sampler (of batches) goes over all samples, whatever the rank."""
    below = getattr(sampler, "sampler", sampler)
    return type(below) in (RandomSampler, SequentialSampler)


def describe(sampler: Any) -> dict[str, Any]:
    """What kind of sampler it is, with the fields that distributed ones have."""
    below = getattr(sampler, "sampler", sampler)
    result: dict[str, Any] = {"class": type(below).__name__, "batches": type(sampler).__name__}
    for name in ("num_replicas", "rank", "epoch", "seed", "shuffle", "drop_last", "total_size"):
        value = getattr(below, name, None)
        if isinstance(value, int | bool):
            result[name] = value
    return result
