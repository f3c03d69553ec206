"""The pushes of an asynchronous run, as numbers to draw and to count.

Two witnesses tell of them: a record of each push that was answered, and the counts of result.json, which go on from
session to session. The counts know more (what two replicas computed twice), but a run that is under way or broke off
has none: they are used where they speak of all pushes on record.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from squall.report.values import listed, mapping, number, whole

if TYPE_CHECKING:
    from squall.report.read import RunData

_MOST_STALE = 10**6  # what is more is no count of pushes


class Pushes:
    """The pushes on record as columns, in the order in which they were answered.

    Attributes:
        names: of the replicas; `replica` holds places in it.
        seconds: since the run's start.
        took, stalled: of the replica, from the hand-over of its push before to that of this one; of these, that its
            computing stood still for fetches, pushes and minibatches.
        alive: replicas that took part then.
        staleness: how many answers of shards had which; `unknown`: answers that told none.
        dropped: answers of shards to which a push was too stale.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._places: dict[str, int] = {}
        self.replica, self.minibatches, self.samples, self.alive = (array("q") for _ in range(4))
        self.seconds, self.took, self.stalled = (array("d") for _ in range(3))
        self.staleness: Counter[int] = Counter()
        self.unknown = self.dropped = 0

    def __len__(self) -> int:
        return len(self.replica)

    def add(self, record: Mapping[str, Any]) -> None:
        """Appends a push."""
        name = str(record.get("replica") or "?")
        place = self._places.setdefault(name, len(self.names))
        if place == len(self.names):
            self.names.append(name)
        self.replica.append(place)
        for count, key in ((self.minibatches, "minibatches"), (self.samples, "samples"), (self.alive, "alive")):
            count.append(max(whole(record.get(key)), 0))
        for time, key in ((self.seconds, "seconds"), (self.took, "took"), (self.stalled, "stalled")):
            time.append(number(record.get(key)))
        for value in listed(record.get("staleness")):
            known = whole(value, -1)
            if 0 <= known <= _MOST_STALE:
                self.staleness[known] += 1
            else:
                self.unknown += 1
        self.dropped += max(whole(record.get("dropped")), 0)


@dataclass(frozen=True)
class Share:
    """What one replica did: `seconds` from hand-over to hand-over of its pushes, `stalled` of these.

    Of a minimisation its units are pushes, their portions minibatches.
    """

    name: str
    pushes: int
    minibatches: int
    samples: int
    seconds: float
    stalled: float

    @property
    def still(self) -> float:
        """The fraction of its time that its computing stood still for fetches, pushes and minibatches."""
        return self.stalled / self.seconds if self.seconds > 0 else math.nan


@dataclass(frozen=True)
class Staleness:
    """How stale pushes were: answers of shards by staleness, and those that told none."""

    counts: Mapping[int, int]
    unknown: int

    @property
    def known(self) -> int:
        """Answers that told it."""
        return sum(self.counts.values())

    @property
    def mean(self) -> float:
        """Over the known ones; nan of none."""
        total = sum(value * times for value, times in self.counts.items())
        return total / self.known if self.known else math.nan

    @property
    def median(self) -> int:
        """Half of the known ones are no staler."""
        passed = 0
        for value in sorted(self.counts):
            passed += self.counts[value]
            if 2 * passed >= self.known:
                return value
        return 0


def staleness(run: RunData) -> Staleness:
    """How stale a run's pushes were."""
    found = mapping(run.result.get("staleness"))
    counts = {whole(key, -1): whole(times) for key, times in mapping(found.get("counts")).items()}
    counts = {value: times for value, times in counts.items() if 0 <= value <= _MOST_STALE and times > 0}
    if counts and _speaks_of_all(run):
        return Staleness(counts, max(whole(found.get("unknown")), 0))
    return Staleness(run.pushes.staleness, run.pushes.unknown)


def shares(run: RunData) -> list[Share]:
    """What each replica did, in the order of their numbers."""
    told = mapping(run.result.get("replicas"))
    if run.minimises:
        told = told or mapping(run.tally.get("replicas"))
        found = [_told(str(name), mapping(of), "units", "portions") for name, of in told.items()]
        return sorted(found, key=lambda share: in_order(share.name))
    found = [_told(str(name), mapping(of)) for name, of in told.items()] if told and _speaks_of_all(run) else []
    return sorted(found or _on_record(run.pushes), key=lambda share: in_order(share.name))


def in_order(name: str) -> tuple[str, int, str]:
    """By which names of roles are sorted: replica-2 before replica-10."""
    kind, _, index = name.rpartition("-")
    return (kind, int(index), "") if index.isascii() and index.isdigit() and len(index) < 9 else (name, 0, name)


def computed(run: RunData) -> tuple[int, int | None]:
    """Pushes that replicas computed, and how many of these were of minibatches that another had settled before; None
    where only those are known that were not."""
    found = mapping(run.result.get("pushes"))
    if _speaks_of_all(run):
        return whole(found.get("computed")), max(whole(found.get("repeated")), 0)
    return len(run.pushes), None


def _speaks_of_all(run: RunData) -> bool:
    found = mapping(run.result.get("pushes"))
    return bool(found) and whole(found.get("computed")) - whole(found.get("repeated")) == len(run.pushes)


def _told(name: str, of: Mapping[str, Any], push: str = "pushes", minibatch: str = "minibatches") -> Share:
    pushes, minibatches, samples = (max(whole(of.get(key)), 0) for key in (push, minibatch, "samples"))
    return Share(name, pushes, minibatches, samples, _seconds(of.get("seconds")), _seconds(of.get("stalled")))


def _on_record(pushes: Pushes) -> Iterator[Share]:
    sums: list[list[float]] = [[0, 0, 0, 0.0, 0.0] for _ in pushes.names]
    columns = zip(pushes.replica, pushes.minibatches, pushes.samples, pushes.took, pushes.stalled, strict=True)
    for place, minibatches, samples, took, stalled in columns:
        for at, value in enumerate((1, minibatches, samples, _seconds(took), _seconds(stalled))):
            sums[place][at] += value
    for name, (count, done, seen, seconds, still) in zip(pushes.names, sums, strict=True):
        yield Share(name, int(count), int(done), int(seen), seconds, still)


def _seconds(value: Any) -> float:
    found = number(value)
    return found if math.isfinite(found) and found > 0 else 0.0
