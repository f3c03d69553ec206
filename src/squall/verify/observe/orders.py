"""The order of one pass over a loader: read from the sampler as the loader does, noted whole, and cut where it is long.

::

    sampler    0 1 2 3 4 5 6 7 8 9    read as asked for; the rest of a pass that is broken off, when the trace is saved
    cut        0 1 2             9    read at once
"""

from __future__ import annotations

import itertools
import operator
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, Subset

from squall.verify.observe import streams
from squall.verify.observe.recorder import Recorder

_DEPTH = 4  # a sampler of batches, of shares, of samples
_BEYOND = 1_000  # batches beyond four times those that a sampler says it has: it has no end

Begins = Callable[["Order"], dict[str, Any]]
"""Notes that a pass begins: its event."""


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

    A sampler may draw from the generators that the training draws from, so it is not read ahead; but for a pass that
    is cut. No pass has begun before its first batch is asked for.
    """

    def __init__(self, watched: Watched) -> None:
        self.watched = watched
        self.event: dict[str, Any] | None = None
        self.over = False
        self._source: Iterator[Any] = iter(())
        self._ahead: deque[Any] = deque()  # read, and not given
        self._flat: list[int] = []
        self._most = 0  # batches that are read to find the end

    def __iter__(self) -> Order:
        return self

    def __next__(self) -> Any:
        if self.event is None:
            self._begin()
        assert self.event is not None
        if not self._ahead:
            batch = self._next()
        else:
            batch = self._ahead.popleft()
        pass_ = self.event["pass_"]
        return Batch(batch, pass_) if self.watched.batched and type(batch) is list else batch

    def _begin(self) -> None:
        recorder, sampler = self.watched.recorder, self.watched.sampler
        self._source = iter(sampler)
        length = streams.length(sampler)
        self._most = 4 * length + _BEYOND
        self.event = self.watched.begins(self)
        listed = listed_by(sampler, self.watched.dataset)
        if listed is not None:
            recorder.keep(self.event, "listed", listed)
        if length < 0:
            self.event["endless"] = True  # until its end is seen
        else:
            self.event["batches"] = length
        if 0 <= cut(length, recorder, plain=is_plain(sampler)) < length:
            whole = list(itertools.islice(self._source, self._most))
            for batch in whole:
                self._note(batch)
            self._close()
            self.event["run"] = _kept(len(whole), cut(len(whole), recorder, plain=is_plain(sampler)))
            self._ahead.extend(whole[position] for position in self.event["run"])
            self._source = iter(())

    def _next(self) -> Any:
        try:
            batch = next(self._source)
        except StopIteration:
            self._close()
            raise
        self._note(batch)
        return batch

    def _note(self, batch: Any) -> None:
        assert self.event is not None
        indices = indices_of(batch, self.watched.batched)
        if isinstance(self.watched.dataset, Subset) or not all(type(one) is int for one in indices):
            if not all(_is_index(one) for one in indices):
                self.event["size"] = -1  # keys that are no places: nobody knows which there are
            indices = [number_of(one, self.watched.dataset) for one in indices]
        self._flat += indices
        self.event["run"].append(len(self.event["sizes"]))
        self.event["sizes"].append(len(indices))

    def _close(self) -> None:
        """The whole order is known."""
        assert self.event is not None
        if not self.over:
            self.event["batches"] = len(self.event["sizes"])
            self.event.pop("endless", None)
        self.over = True
        self._keep()

    def _keep(self) -> None:
        assert self.event is not None
        self.watched.recorder.keep(self.event, "indices", numpy.asarray(self._flat, dtype=numpy.int64))

    def finish(self) -> None:
        """Reads the rest, for the trace; what the training draws afterwards is as if it had not been read.

        What says no length may have no end: it has no order that could be whole, and is not read on.
        """
        if self.over or self.event is None:
            return
        if self.event.get("endless"):
            self._keep()
            return
        with streams.undisturbed(_generators(self.watched.sampler)), suppress(Exception):  # it is the user's code
            for batch in itertools.islice(self._source, self._most):
                self._ahead.append(batch)
                self._note(batch)
        self._close()


class Batch(list[Any]):
    """The indices of a batch, which take the number of their pass to the process that reads them."""

    def __init__(self, indices: Any, pass_: int) -> None:
        super().__init__(indices)
        self.pass_ = pass_

    def __reduce__(self) -> tuple[Any, ...]:
        return Batch, (list(self), self.pass_)


def _generators(sampler: Any) -> list[Any]:
    """Those that a sampler, or what it is made of, holds."""
    found: list[Any] = []
    for _ in range(_DEPTH):
        found += streams.held_by(sampler)
        sampler = _within(sampler)
    return found


def _within(sampler: Any) -> Any:
    """The sampler that another one is made of; None for one that stands alone."""
    for name in ("sampler", "batch_sampler"):
        if hasattr(sampler, name):
            return getattr(sampler, name)
    return getattr(getattr(sampler, "dataset", None), "_sampler", None)  # Lightning's around one of the user's


def listed_by(sampler: Any, dataset: Any) -> numpy.ndarray[Any, Any] | None:
    """The places in the data set below all subsets that a sampler draws from, where it has a list of them: `indices`."""
    for _ in range(_DEPTH):
        indices = getattr(sampler, "__dict__", {}).get("indices")
        if indices is not None:
            with suppress(ValueError, TypeError, IndexError, RuntimeError):  # it is some other list
                return _places(indices, dataset)
            return None
        sampler = _within(sampler)
    return None


def _places(indices: Any, dataset: Any) -> numpy.ndarray[Any, Any] | None:
    found = numpy.asarray(indices)
    if found.ndim != 1 or not numpy.issubdtype(found.dtype, numpy.integer):
        return None
    while isinstance(dataset, Subset):
        found, dataset = numpy.asarray(dataset.indices)[found], dataset.dataset
    return numpy.unique(found).astype(numpy.int64)


def indices_of(batch: Any, batched: bool) -> list[Any]:
    """What a sampler gives at once, as indices."""
    if isinstance(batch, list) or (batched and hasattr(batch, "__len__")):
        return list(batch)
    return [batch]


def _is_index(key: Any) -> bool:
    try:
        operator.index(key[0] if isinstance(key, tuple) and key else key)
    except (TypeError, RuntimeError):
        return False
    return True


def number_of(key: Any, dataset: Any) -> int:
    """The place in the data set below all subsets that a key means; of a key that is no place some number.

    Of a tuple the first is the place: others say how to read it (its size, its augmentation).
    """
    key = key[0] if isinstance(key, tuple) and key else key
    if not _is_index(key):
        return zlib.crc32(repr(key).encode())
    place = operator.index(key)
    while isinstance(dataset, Subset):
        place, dataset = int(dataset.indices[place]), dataset.dataset
    return place


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
