"""The roles of an asynchronous run over its time: who was heard of when, who came back, who left.

The records tell when a role came and when it was missed, not when it died. What shows that a replica lives is its
pushes, so its lane is faint from its last push to the moment at which it was called silent, or came back::

    records    joined   push push              silent            push push                  left
    lane       ########################..........................##############################
                                       ^ last heard               ^ heard again

Of a minimisation no pushes are recorded: a lane is whole until the role was missed, and faint until it came back or
a checkpoint counts more work of its.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from squall.report.pushes import in_order
from squall.report.read import RunData
from squall.report.series import median
from squall.report.values import number, whole

_LONGEST = 1e12  # seconds: what is more is no time of a run
_LATE = 5.0  # times the usual stretch between its pushes: a replica that is not heard of for longer at the end


@dataclass(frozen=True)
class Span:
    """A stretch of a role's time; `heard`: something shows that it lived."""

    start: float
    stop: float
    heard: bool = True


@dataclass(frozen=True)
class Mark:
    """What became of a role, and when: joined, restarted, silent, left."""

    at: float
    change: str
    lost: int = 0


@dataclass
class Lane:
    """One role over the run."""

    name: str
    spans: list[Span] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)

    @property
    def is_shard(self) -> bool:
        """It holds weights."""
        return self.name.startswith("shard-")


@dataclass
class _Open:
    """A replica's lane as it is being drawn: since when it is there, and when it was last heard of."""

    lane: Lane
    since: float
    heard: float
    gaps: list[float] = field(default_factory=list)
    quiet: bool = False
    gone: bool = False

    def hear(self, at: float, *, pushes: bool = False) -> None:
        """It lives at this time."""
        if self.quiet:
            self._add(self.since, at, False)
            self.since, self.quiet = at, False
        elif pushes and self.heard > self.since:
            self.gaps.append(at - self.heard)
        self.heard = max(self.heard, at)

    def miss(self) -> None:
        """It was last heard of some time ago, and nothing is known from then on."""
        if not self.quiet:
            self._add(self.since, self.heard, True)
            self.since, self.quiet = self.heard, True

    def end(self, at: float) -> None:
        """The run's end, or its own."""
        usual = median(self.gaps)
        if not self.quiet and self.gaps and at - self.heard > _LATE * usual:
            self.miss()
        self._add(self.since, at, not self.quiet)
        self.gone = True

    def _add(self, start: float, stop: float, heard: bool) -> None:
        if stop > start:
            self.lane.spans.append(Span(start, stop, heard))


def end_of(run: RunData) -> float:
    """Seconds up to which the records tell of a run."""
    last = [number(change.get("seconds")) for change in run.changes[-1:]] + list(run.pushes.seconds[-1:])
    return max((value for value in (run.seconds, *last) if 0 <= value < _LONGEST), default=0.0)


def lanes(run: RunData) -> list[Lane]:
    """A lane for each role that the records name: shards, then replicas."""
    end = end_of(run)
    shards = {f"shard-{index}": Lane(f"shard-{index}") for index in range(min(whole(run.started.get("shards")), 4096))}
    replicas: dict[str, _Open] = {}
    for at, what in _in_time(run):
        name = str(what.get("role") or what.get("replica") or "?")
        if name.startswith("shard-"):
            shards.setdefault(name, Lane(name)).marks.append(_mark(at, what))
            continue
        if run.minimises and "change" not in what and name in replicas and replicas[name].gone:
            continue  # a checkpoint counts what it did before it left
        if name not in replicas or replicas[name].gone:
            lane = replicas[name].lane if name in replicas else Lane(name)
            replicas[name] = _Open(lane, at, at)
        _take(replicas[name], at, what, pushes=not run.minimises)
    for lane in shards.values():
        lane.spans.append(Span(0.0, end))
    for one in replicas.values():
        if not one.gone:
            one.end(end)
    found = [*shards.values(), *(one.lane for one in replicas.values())]
    return sorted(found, key=lambda lane: (not lane.is_shard, in_order(lane.name)))


def _take(one: _Open, at: float, what: Mapping[str, Any], *, pushes: bool) -> None:
    change = what.get("change")
    if not pushes:
        one.heard = max(one.heard, at)
    if "change" not in what:
        one.hear(at, pushes=pushes)
        return
    one.lane.marks.append(_mark(at, what))
    if change == "silent":
        one.miss()
    elif change == "restarted":
        one.miss()
        one.hear(at)
    elif change == "left":
        one.end(at)
    else:
        one.hear(at)


def _in_time(run: RunData) -> Iterable[tuple[float, Mapping[str, Any]]]:
    """Changes, pushes and signs in the order of their times."""
    pushes = run.pushes
    told: list[tuple[float, Mapping[str, Any]]] = [(number(change.get("seconds")), change) for change in run.changes]
    named = zip(pushes.seconds, pushes.replica, strict=True)
    told += [(at, {"replica": pushes.names[place]}) for at, place in named]
    told += [(at, {"replica": name}) for at, name in run.signs if run.minimises]
    return sorted((event for event in told if 0 <= event[0] < _LONGEST), key=lambda event: event[0])


def _mark(at: float, change: Mapping[str, Any]) -> Mark:
    return Mark(at, str(change.get("change", "")), max(whole(change.get("lost")), 0))
