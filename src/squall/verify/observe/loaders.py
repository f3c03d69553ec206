"""Which samples this rank reads: every pass over every `DataLoader`.

The order of a whole pass is read from the loader's sampler, so that coverage is known exactly (`orders.py`); long
passes are cut to some batches from the front and the last one. A loader that is cut says so in its length: what the
script computes from it, schedules and ends of accumulation windows, fits what will run. A length keeps its remainder,
so that windows of 2, 3, 4, 6, 8, 12 or 24 end where they did.

A loader over all samples may later be dealt out to the processes (Accelerate and Lightning do it): it is cut to a
multiple of what each process will read.
"""

from __future__ import annotations

import json
import os
from collections import deque
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset, dataloader
from torch.utils.data._utils import fetch as fetching

from squall.verify.observe import streams
from squall.verify.observe.orders import Batch, Order, Watched, describe, number_of
from squall.verify.observe.recorder import Recorder, where

_LAST_BATCHES = 4
_ROWS = 1024  # samples of a batch that are hashed, where no index tells them apart


class Loaders:
    """Watches the loaders of one rank."""

    def __init__(self, recorder: Recorder, *, on_pass: Any = None) -> None:
        self.recorder = recorder
        self.on_pass = on_pass or (lambda root: None)  # called where a pass begins
        self.latest: dict[str, Any] | None = None  # the batch that was given out last
        self._recent: deque[tuple[dict[str, Any], list[Tensor]]] = deque(maxlen=_LAST_BATCHES)
        self._roots: dict[int, int] = {}
        self._alive: list[Any] = []  # so that no number is used again
        self._passes: dict[int, int] = {}
        self._current: dict[int, int] = {}  # root -> pass, for loader processes, which inherit it
        self._orders: list[Order] = []  # passes that go on
        self._iterator: Any = None  # over a loader without an order
        self._rounds = -1
        self._items: list[list[int]] = []

    def root(self, dataset: Any) -> tuple[Any, int]:
        """The data set below all subsets, and its number."""
        while isinstance(dataset, Subset):
            dataset = dataset.dataset
        number = self._roots.get(id(dataset))
        if number is None:
            number = self._roots[id(dataset)] = len(self._roots)
            self._alive.append(dataset)
        return dataset, number

    def install(self) -> None:
        """From now on every loader is watched, also in processes that are forked for loading."""
        loaders, index_sampler = self, DataLoader._index_sampler.fget  # type: ignore[attr-defined]

        def watched(loader: DataLoader[Any]) -> Any:
            sampler = index_sampler(loader)
            if loader._dataset_kind != dataloader._DatasetKind.Map or not loaders.recorder.here:
                return sampler
            return Watched(loaders.recorder, loaders.begins, loader, sampler)

        DataLoader._index_sampler = property(watched)  # type: ignore[assignment, method-assign]
        following = dataloader._BaseDataLoaderIter.__next__

        def give(iterator: Any) -> Any:
            batch = following(iterator)
            if loaders.recorder.here:
                loaders._given(iterator, batch)
            return batch

        dataloader._BaseDataLoaderIter.__next__ = give  # type: ignore[assignment, method-assign]
        fetch = fetching._MapDatasetFetcher.fetch

        def read(fetcher: Any, indices: Any) -> Any:
            if not loaders.recorder.observing or not fetcher.auto_collation:
                indices = list(indices) if isinstance(indices, Batch) else indices
                return fetch(fetcher, indices)  # type: ignore[no-untyped-call]
            return loaders._read(fetcher, indices)

        fetching._MapDatasetFetcher.fetch = read  # type: ignore[method-assign]
        streams.SEEDS.install()
        self.recorder.before_save.append(self._finish)

    def begins(self, order: Order) -> dict[str, Any]:
        """A pass over a loader begins."""
        self._orders.append(order)
        watched = order.watched
        dataset, root = self.root(watched.dataset)
        sampler = watched.sampler
        event = self.note_pass(
            root,
            streams.length(dataset),
            kind=type(dataset).__name__,
            run=[],
            sizes=[],
            batch_size=getattr(sampler, "batch_size", None) or watched.batch_size,
            drop_last=bool(getattr(sampler, "drop_last", False)),
            workers=watched.workers,
            sampler=describe(sampler),
        )
        held = _held(watched.dataset)
        if held is not None:
            self.recorder.keep(event, "held", held)
        return event

    def _finish(self) -> None:
        """Reads on to the end of passes that were broken off: what they would have held is part of their order."""
        for order in self._orders:
            order.finish()
        self._orders = [order for order in self._orders if not order.over]

    def has_no_end(self, root: int | None) -> bool:
        """Whether data is read in a pass that may go on for ever."""
        going = [order.event for order in self._orders if order.event is not None and not order.over]
        return any(event["data"] == root and event.get("endless") for event in going)

    def note_pass(self, root: int, size: int, **fields: Any) -> dict[str, Any]:
        """A pass over a data set begins."""
        self.on_pass(root)
        number = self._passes[root] = self._passes.get(root, -1) + 1
        self._current[root] = number
        defaults = {"batches": 0, "run": [], "sizes": [], "batch_size": None, "drop_last": False, "workers": 0}
        return self.recorder.note("pass", data=root, pass_=number, size=size, **{**defaults, **fields}, where=where())

    def _given(self, iterator: Any, batch: Any) -> None:
        event = getattr(iterator._sampler_iter, "event", None)
        position = iterator._num_yielded - 1
        tensors = leaves(batch)
        note = self.recorder.note(
            "batch",
            of=None if event is None else event["n"],
            position=position if event is None else event["run"][position],
            size=len(tensors[0]) if tensors and tensors[0].ndim else 0,
            data=self.root(iterator._dataset)[1],
        )
        if event is None:
            note["round"] = self._round(iterator)
            rows = [streams.content(row) for row in tensors[0][:_ROWS]] if tensors and tensors[0].ndim > 1 else []
            self.recorder.keep(note, "rows", numpy.asarray(rows, dtype=numpy.int64))
        self.latest = note
        self._recent.append((note, tensors))
        self._flush_items()

    def _round(self, iterator: Any) -> int:
        """Which iteration over a loader without an order this is."""
        if iterator is not self._iterator:
            self._iterator = iterator
            self._rounds += 1
        return self._rounds

    def given(self, batch: Any, **fields: Any) -> None:
        """A batch that did not come from a `DataLoader`."""
        self._flush_items()
        self.latest = self.recorder.note("batch", **fields)
        self._recent.append((self.latest, leaves(batch)))

    def source(self, tensors: list[Tensor]) -> dict[str, Any] | None:
        """The batch that a network's inputs came from: by their memory, then by their numbers, then the latest."""
        note: dict[str, Any]
        for note, given in reversed(self._recent):
            places = {one.data_ptr() for one in given}
            if any(one.data_ptr() in places for one in tensors):
                return note
        for note, given in reversed(self._recent):
            if any(_same(one, other) for one in tensors for other in given):
                return note
        return self.latest

    def _read(self, fetcher: Any, indices: Any) -> Any:
        """As the fetcher does it, sample by sample, each between two looks at the generators."""
        dataset: Any = fetcher.dataset
        root, number = self.root(dataset)
        pass_ = getattr(indices, "pass_", self._current.get(number, -1))
        indices = list(indices) if isinstance(indices, Batch) else indices
        below = dataset
        while type(below) is Subset:  # it hands several indices on only if the data set below takes several
            below = below.dataset
        if getattr(below, "__getitems__", None):
            return fetcher.collate_fn(dataset.__getitems__(indices))
        held = streams.held_by(root if below is root else dataset)
        data = []
        for index in indices:
            with streams.reading(held) as drawn:
                sample = dataset[index]
            data.append(sample)
            inside = number_of(index, dataset)
            stored = streams.is_stored(sample, inside, root) if drawn.made else -1
            self.add_item(
                [
                    *(number, pass_, inside),
                    *(drawn.drawn, drawn.made, streams.content(sample), stored),
                ],
                self.recorder.here,
            )
        return fetcher.collate_fn(data)

    def add_item(self, item: list[int], here: bool) -> None:
        """What one sample was read of and drew: data, pass, index, hashes; `here`: not in a loader process."""
        self._items.append(item)
        if not here:
            self._write_items()

    def _flush_items(self) -> None:
        if self._items:
            event = self.recorder.note("items", worker=None)
            self.recorder.keep(event, "items", numpy.asarray(self._items, dtype=numpy.int64))
            self._items = []

    def _write_items(self) -> None:
        """In a loader process: to a file of its own."""
        info = torch.utils.data.get_worker_info()
        worker = -1 if info is None else info.id
        path = Path(self.recorder.folder) / f"rank-{self.recorder.rank}.items-{os.getpid()}.jsonl"
        with path.open("a", encoding="utf-8") as file:
            for item in self._items:
                file.write(json.dumps([worker, *item]) + "\n")
        self._items = []


def leaves(batch: Any, depth: int = 4) -> list[Tensor]:
    """The tensors of a batch, however nested."""
    if isinstance(batch, Tensor):
        return [batch]
    if depth and isinstance(batch, dict):
        return [leaf for value in batch.values() for leaf in leaves(value, depth - 1)]
    if depth and isinstance(batch, list | tuple):
        return [leaf for value in batch for leaf in leaves(value, depth - 1)]
    if depth and hasattr(batch, "data") and isinstance(batch.data, dict):  # BatchEncoding
        return leaves(batch.data, depth - 1)
    return []


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.numel() == 0 or one.dtype != other.dtype:
        return False
    return bool((one.detach().to("cpu") == other.detach().to("cpu")).all())


def _held(dataset: Any) -> numpy.ndarray[Any, Any] | None:
    """The indices, into the data set below all subsets, that a loader of this one can give; None for all."""
    if not isinstance(dataset, Subset):
        return None
    found = numpy.asarray([int(index) for index in dataset.indices], dtype=numpy.int64)
    below = dataset.dataset
    while isinstance(below, Subset):
        inside = numpy.asarray([int(index) for index in below.indices], dtype=numpy.int64)
        found, below = inside[found], below.dataset
    return numpy.unique(found)
