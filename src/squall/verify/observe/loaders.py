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
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset, dataloader
from torch.utils.data._utils import fetch as fetching

from squall.verify.observe import contents, streams
from squall.verify.observe.blind import Guard, watching
from squall.verify.observe.orders import Batch, Order, Watched, describe
from squall.verify.observe.places import held_by, number_of
from squall.verify.observe.recent import Recent
from squall.verify.observe.recorder import Recorder, where

_ROWS = 1024  # samples of a batch that are hashed, where no index tells them apart


class Loaders:
    """Watches the loaders of one rank."""

    def __init__(self, recorder: Recorder, *, on_pass: Callable[[int, Order | None], None] | None = None) -> None:
        self.recorder = recorder
        self.on_pass = on_pass or (lambda root, order: None)  # called where a pass begins
        self.latest: dict[str, Any] | None = None  # the batch that was given out last
        self.latest_of: dict[int, dict[str, Any]] = {}  # the same, of each data set
        self._recent = Recent()
        self._roots: dict[int, int] = {}
        self._alive: list[Any] = []  # so that no number is used again
        self._passes: dict[int, int] = {}
        self._current: dict[int, int] = {}  # root -> pass, for loader processes, which inherit it
        self._made_of: dict[int, tuple[int, int]] = {}  # pass -> its data set and sampler, by their ids
        self._going: weakref.WeakSet[Order] = weakref.WeakSet()  # passes whose loaders are being read
        self._to_finish: list[Order] = []  # passes that were observed, and have not come to their end
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

    @watching(None)
    def begins(self, order: Order) -> dict[str, Any]:
        """A pass over a loader begins."""
        self._going.add(order)
        watched = order.watched
        dataset, root = self.root(watched.dataset)
        sampler = watched.sampler
        event = self.note_pass(
            root,
            contents.length(dataset),
            order,
            kind=type(dataset).__name__,
            run=[],
            sizes=[],
            batch_size=getattr(sampler, "batch_size", None) or watched.batch_size,
            drop_last=bool(getattr(sampler, "drop_last", False)),
            workers=watched.workers,
            sampler=describe(sampler),
        )
        self._made_of[event["n"]] = _made_of(order)
        if self.recorder.observing:
            self._to_finish = [*(one for one in self._to_finish if not one.over), order]
            with Guard(self.recorder, "Loaders.begins: held"):
                held = held_by(watched.dataset)
                if held is not None:
                    self.recorder.keep(event, "held", held)
        return event

    def keep_known(self) -> None:
        """What is known of passes that have not come to their end: the trace that is saved now may be the last."""
        for order in self._to_finish:
            order.keep_known()

    def finish(self) -> None:
        """The script is over: reads on to the end of passes that were broken off, which belongs to their order."""
        for order in self._to_finish:
            order.finish()
        self._to_finish = []

    def follows(self, order: Order | None, pass_: int | None) -> bool:
        """Whether a pass that begins certainly comes after another (its event's number), and not beside it.

        It does if it is over the same data, not another part of it, and by the same sampler; or by another, and the
        earlier one is over.
        """
        if order is None or pass_ is None or pass_ not in self._made_of:
            return True
        (dataset, sampler), before = _made_of(order), self._made_of[pass_]
        return dataset == before[0] and (sampler == before[1] or not self._is_read(pass_))

    def _is_read(self, pass_: int) -> bool:
        going = [order for order in self._going if order.event is not None and order.event["n"] == pass_]
        return any(not order.used_up for order in going)

    def has_no_end(self, root: int | None) -> bool:
        """Whether data is read in a pass that may go on for ever."""
        going = [order.event for order in self._going if order.event is not None and not order.over]
        return any(event["data"] == root and event.get("endless") for event in going)

    def note_pass(self, root: int, size: int, order: Order | None = None, **fields: Any) -> dict[str, Any]:
        """A pass over a data set begins; `order`: over a loader that has one."""
        self.on_pass(root, order)
        number = self._passes[root] = self._passes.get(root, -1) + 1
        self._current[root] = number
        defaults = {"batches": 0, "run": [], "sizes": [], "batch_size": None, "drop_last": False, "workers": 0}
        return self.recorder.note("pass", data=root, pass_=number, size=size, **{**defaults, **fields}, where=where())

    @watching(None)
    def _given(self, iterator: Any, batch: Any) -> None:
        order = iterator._sampler_iter if isinstance(iterator._sampler_iter, Order) else None
        event = None if order is None else order.event
        position = iterator._num_yielded - 1
        if order is not None:
            order.given = position + 1
        tensors = leaves(batch)
        note = self.recorder.note(
            "batch",
            of=None if event is None else event["n"],
            position=position if event is None else event["run"][position],
            size=contents.count(tensors[0]) if tensors else 0,
            data=self.root(iterator._dataset)[1],
        )
        self._is_latest(note, tensors)
        if event is None:
            note["round"] = self._round(iterator)
            if tensors and self.recorder.observing:
                self.recorder.keep(note, "rows", numpy.asarray(contents.each(tensors[0], _ROWS), dtype=numpy.int64))
        self._flush_items()

    def _is_latest(self, note: dict[str, Any], tensors: list[Tensor]) -> None:
        self.latest = self.latest_of[note["data"]] = note
        if self.recorder.observing:
            self._recent.add(note, tensors)

    def _round(self, iterator: Any) -> int:
        """Which iteration over a loader without an order this is."""
        if iterator is not self._iterator:
            self._iterator = iterator
            self._rounds += 1
        return self._rounds

    @watching(None)
    def given(self, /, batch: Any, **fields: Any) -> None:
        """A batch that did not come from a `DataLoader`."""
        self._flush_items()
        self._is_latest(self.recorder.note("batch", **fields), leaves(batch))

    def source(self, tensors: list[Tensor]) -> dict[str, Any] | None:
        """The batch that a network's inputs came from: by their memory, then by their numbers, then the latest."""
        return self._found(tensors) or self.latest

    @watching(None)
    def _found(self, tensors: list[Tensor]) -> dict[str, Any] | None:
        return self._recent.find(tensors)

    def _read(self, fetcher: Any, indices: Any) -> Any:
        """As the fetcher does it, sample by sample, each between two looks at the generators."""
        dataset: Any = fetcher.dataset
        pass_ = getattr(indices, "pass_", None)
        indices = list(indices) if isinstance(indices, Batch) else indices
        below = dataset
        while type(below) is Subset:  # it hands several indices on only if the data set below takes several
            below = below.dataset
        if getattr(below, "__getitems__", None):
            return fetcher.collate_fn(dataset.__getitems__(indices))
        held = self._holds(dataset)
        data: list[Any] = []
        items: list[list[int]] = []
        for index in indices:
            drawn = self._opens(held)
            try:
                sample = dataset[index]
            finally:
                self._closes(drawn)
            data.append(sample)
            items += self._item(dataset, index, pass_, sample, drawn)
        self.add_items(items)
        return fetcher.collate_fn(data)

    @watching(())
    def _holds(self, dataset: Any) -> Sequence[Any]:
        """The generators that a data set holds."""
        below = dataset
        while type(below) is Subset:
            below = below.dataset
        return streams.held_by(below if below is self.root(dataset)[0] else dataset)

    @watching(None)
    def _opens(self, held: Sequence[Any]) -> streams.Reading:
        return streams.SEEDS.opens(held)

    @watching(None)
    def _closes(self, drawn: streams.Reading | None) -> None:
        if drawn is not None:
            drawn.close()

    @watching(())
    def _item(
        self, dataset: Any, index: Any, pass_: int | None, sample: Any, drawn: streams.Reading | None
    ) -> Sequence[list[int]]:
        if drawn is None:
            return ()
        root, number = self.root(dataset)
        inside = number_of(index, dataset)
        stored = contents.is_stored(sample, inside, root) if drawn.made else -1
        pass_ = self._current.get(number, -1) if pass_ is None else pass_
        content = contents.content(sample)
        return [[number, pass_, inside, state, seeds, content, stored] for state, seeds in drawn.parts]

    @watching(None)
    def add_items(self, items: list[list[int]]) -> None:
        """What samples were read of and drew: data, pass, index, hashes."""
        self._items += items
        if not self.recorder.here:
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
            file.write("".join(json.dumps([worker, *item]) + "\n" for item in self._items))
        self._items = []


def _made_of(order: Order) -> tuple[int, int]:
    return id(order.watched.dataset), id(order.watched.sampler)


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
