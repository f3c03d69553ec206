"""The traces of one run of a training, read back: what each rank saw, and which updates belong together.

Updates of different ranks belong together if they end the same number of backward passes: a rank that leaves out an
update shows as a gap, and does not shift those that follow. `matching` says what is done where ranks differ in passes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
from safetensors.numpy import load_file

Array = numpy.ndarray[Any, Any]
Event = Mapping[str, Any]


class Numbers(Mapping[str, Array]):
    """The arrays of a trace by name, in float64 where they are kept in float32: sums and squares need its range."""

    def __init__(self, kept: Mapping[str, Array]) -> None:
        self._kept = kept

    def __getitem__(self, name: str) -> Array:
        array = self._kept[name]
        return array.astype(numpy.float64) if array.dtype == numpy.float32 else array

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)


@dataclass(frozen=True)
class Rank:
    """What one rank saw.

    Attributes:
        about: what it said of itself: frameworks, backend, parameters, how it ended.
        events: in order; the number of an event is its place.
        items: one row a sample that was read, one more for each further generator that it drew from: worker (-1 for
            the rank itself), data, pass, index, the state that it drew from (`observe.streams.Reading`), hash of the
            seeds that it gave, hash of what it holds, whether it is as stored.
        in_order: whether updates of different ranks are told by their order: there are as many, and passes are not.
    """

    number: int
    about: Mapping[str, Any]
    events: Sequence[Event]
    arrays: Mapping[str, Array] = field(repr=False)
    items: Array = field(repr=False)
    in_order: bool = False

    def of(self, *kinds: str) -> list[Event]:
        """The events of some kinds, in order."""
        return [event for kind, event in self._kinds if kind in kinds]

    @cached_property
    def _kinds(self) -> list[tuple[str, Event]]:
        return [(event["event"], event) for event in self.events]

    def array(self, event: Event, name: str) -> Array | None:
        """The numbers that belong to an event under a name."""
        return self.arrays.get(f"{event['n']}.{name}")

    @property
    def parameters(self) -> Sequence[Mapping[str, Any]]:
        """Name, shape and whether it needs gradients, of each parameter."""
        found: Sequence[Mapping[str, Any]] = self.about.get("parameters", ())
        return found

    def name(self, index: int) -> str:
        """A parameter's name."""
        return str(self.parameters[index]["name"]) if index < len(self.parameters) else f"parameter {index}"

    @cached_property
    def observed(self) -> int:
        """The number of the event from which on little is noted; past the end where there is none."""
        return next((event["n"] for event in self.events if event["event"] == "enough"), len(self.events))

    @cached_property
    def steps(self) -> list[Event]:
        """The updates that were observed whole."""
        return [event for event in self.of("step") if event["n"] < self.observed and "from" in event]

    @cached_property
    def backwards(self) -> list[Event]:
        """The backward passes."""
        return self.of("backward")

    def ordinal(self, backward: int) -> int:
        """How many backward passes came before an event."""
        return self._ordinals.get(backward, -1)

    @cached_property
    def _ordinals(self) -> dict[int, int]:
        return {event["n"]: place for place, event in enumerate(self.backwards)}

    def contributing(self, step: Event) -> list[Event]:
        """The backward passes whose gradients an update applied, in order."""
        numbers = sorted({number for part in step["from"].values() for number in part if number >= 0})
        return [self.events[number] for number in numbers]

    def key(self, step: Event) -> tuple[int, int]:
        """What tells which updates of other ranks belong to this one: optimiser, last backward pass."""
        if self.in_order or self.about.get(
            "lockstep"
        ):  # ranks may have different numbers of passes, and the same of updates
            return step["optimizer"], self._places[step["n"]]
        backwards = self.contributing(step)
        if not backwards:  # gradients by torch.autograd.grad: nothing tells but their order
            return step["optimizer"], -1 - self._places[step["n"]]
        return step["optimizer"], self.ordinal(backwards[-1]["n"])

    def indices(self, batch: int | None) -> Array | None:
        """The indices into the data that a batch held; None where they are not known."""
        if batch is None or self.events[batch].get("of") is None:
            return None
        event, position = self.events[self.events[batch]["of"]], self.events[batch]["position"]
        order = self.array(event, "indices")
        begin = sum(event["sizes"][:position])
        return None if order is None else order[begin : begin + event["sizes"][position]]

    @cached_property
    def _places(self) -> dict[int, int]:
        return {step["n"]: place for place, step in enumerate(self.steps)}

    @cached_property
    def by_key(self) -> dict[tuple[int, int], Event]:
        """The observed updates by their key; the first where there are several."""
        found: dict[tuple[int, int], Event] = {}
        for step in self.steps:
            found.setdefault(self.key(step), step)
        return found

    @cached_property
    def training_data(self) -> list[int]:
        """The numbers of the data sets that were trained on, those with most passes first."""
        counts: dict[int, int] = {}
        for backward in self.backwards:
            batch = backward.get("batch")
            if batch is not None:
                data = self.events[batch]["data"]
                counts[data] = counts.get(data, 0) + 1
        return sorted(counts, key=lambda data: -counts[data])

    def passes(self, data: int, *, training: bool | None = None) -> list[Event]:
        """The passes over a data set; `training`: only those in which there was a backward pass, or only the others."""
        found = [event for event in self.of("pass") if event["data"] == data]
        if training is None:
            return found
        return [event for event in found if (event["n"] in self._trained) is training]

    @cached_property
    def _trained(self) -> set[int]:
        found = set()
        for backward in self.backwards:
            batch = backward.get("batch")
            if batch is not None and self.events[batch].get("of") is not None:
                found.add(self.events[batch]["of"])
        if not self.backwards:
            return found
        for event in self.of("pass"):  # passes of which only little was noted: those with updates before the next
            if event["n"] > self.observed and any(data == event["data"] for data in self.training_data):
                found.add(event["n"])
        return found


@dataclass(frozen=True)
class Run:
    """One run of the training with a number of processes."""

    processes: int
    ranks: Sequence[Rank]

    @property
    def first(self) -> Rank:
        """Rank 0."""
        return self.ranks[0]

    @cached_property
    def keys(self) -> list[tuple[int, int]]:
        """The updates of all ranks, in the order of rank 0, then of the others."""
        found: dict[tuple[int, int], None] = {}
        for rank in self.ranks:
            found.update(dict.fromkeys(rank.by_key))
        return list(found)

    def step(self, key: tuple[int, int]) -> list[Event | None]:
        """The update of each rank, None for one that has left it out."""
        return [rank.by_key.get(key) for rank in self.ranks]

    def whole(self) -> Iterator[tuple[tuple[int, int], list[Event]]]:
        """The updates that all ranks made."""
        for key in self.keys:
            steps = self.step(key)
            found = [step for step in steps if step is not None]
            if len(found) == len(self.ranks):
                yield key, found

    def gathered(self, events: Sequence[Event], name: str) -> list[Array] | None:
        """The numbers of each rank under a name; a tensor that is spread over ranks is put together for all."""
        found = [rank.array(event, name) for rank, event in zip(self.ranks, events, strict=True)]
        arrays = [one for one in found if one is not None]
        if len(arrays) != len(self.ranks):
            return None
        if self.sharded:
            whole = arrays[0].copy()
            for one in arrays[1:]:
                whole = numpy.where(numpy.isnan(whole), one, whole)
            return [whole] * len(arrays)
        return arrays

    @property
    def sharded(self) -> bool:
        """Whether parameters are spread over ranks."""
        return bool(self.first.about.get("fsdp2"))


def rate_of(step: Event) -> float:
    """The rate of an update; of its first group, where groups have their own."""
    return float(step["groups"][0]["lr"])


def read(folder: Path, processes: int) -> Run:
    """The traces of all ranks of a job's folder, as each has left it.

    Raises:
        FileNotFoundError: a rank has left none.
    """
    return Run(processes, [_rank(folder, number) for number in range(processes)])


def _rank(folder: Path, number: int) -> Rank:
    with (folder / f"rank-{number}.jsonl").open(encoding="utf-8") as file:
        about, *events = [json.loads(line) for line in file]
    arrays = load_file(folder / f"rank-{number}.safetensors")
    items = []
    for event in events:
        if event["event"] == "items":
            rows = arrays.pop(f"{event['n']}.items")
            items.append(numpy.concatenate([numpy.full((len(rows), 1), -1), rows], axis=1))
    for path in sorted(folder.glob(f"rank-{number}.items-*.jsonl")):
        with path.open(encoding="utf-8") as file:
            rows_ = [json.loads(line) for line in file if line.endswith("\n")]
        if rows_:
            items.append(numpy.asarray(rows_, dtype=numpy.int64))
    together = numpy.concatenate(items) if items else numpy.zeros((0, 8), dtype=numpy.int64)
    return Rank(number, about, events, Numbers(arrays), together)
