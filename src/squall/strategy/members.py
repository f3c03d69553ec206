"""Which replicas there are, which part of the data each has, and how many there are to be: pure bookkeeping."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from squall.cluster.program import Promise
from squall.server.messages import Lease, Sender


@dataclass
class Member:
    """A replica as the coordinator knows it.

    Attributes:
        name, incarnation: of the replica.
        part: of each epoch's minibatches that it takes first.
        heard: when last.
        leaving: it gets no more to do.
        silent: not heard for so long that what it had is handed out again.
        asked: number of its last question, with the answer once there is one; `answered` says when.
        durations: seconds a minibatch of its last units.
    """

    name: str
    incarnation: int
    part: int
    heard: float
    leaving: bool = False
    silent: bool = False
    asked: int = 0
    answer: Lease | None = None
    answered: Promise | None = None
    durations: list[float] = field(default_factory=list)


@dataclass
class Members:
    """All replicas of a run.

    Attributes:
        wanted: how many there are to be; named replica-0, replica-1, ...
    """

    wanted: int
    _there: dict[str, Member] = field(default_factory=dict)
    _left: dict[str, int] = field(default_factory=dict)  # which incarnation did
    _asked: dict[Sender, int] = field(default_factory=dict)
    _named: int = 0

    def __post_init__(self) -> None:
        self._named = self.wanted

    def __iter__(self) -> Iterator[Member]:
        return iter(self._there.values())

    def get(self, name: str) -> Member | None:
        """One that has been heard of and has not left."""
        return self._there.get(name)

    @property
    def active(self) -> int:
        """Those that are heard."""
        return sum(not member.silent for member in self)

    def heard(self, sender: Sender, now: float) -> tuple[Member | None, str]:
        """Notes that a replica speaks.

        Returns:
            The member and what has changed: "", "joined" or "restarted"; None of an incarnation that is over.
        """
        member = self._there.get(sender.name)
        change = ""
        if sender.incarnation <= self._left.get(sender.name, -1):
            return None, ""
        if member is None:
            taken = {other.part for other in self}
            part = next(part for part in range(len(taken) + 1) if part not in taken)
            member, change = Member(sender.name, sender.incarnation, part, now), "joined"
        elif sender.incarnation < member.incarnation:
            return None, ""
        elif sender.incarnation > member.incarnation:
            leaving = member.leaving
            member, change = Member(sender.name, sender.incarnation, member.part, now, leaving), "restarted"
        self._there[sender.name] = member
        member.heard, member.silent = now, False
        return member, change

    def is_new(self, sender: Sender, number: int) -> bool:
        """Whether this is the first time that a question of a replica came."""
        new = number > self._asked.get(sender, 0)
        if new:
            self._asked[sender] = number
        return new

    def fall_silent(self, before: float) -> list[Member]:
        """Those that were last heard before a time, and were not known to be silent."""
        found = [member for member in self if not member.silent and member.heard < before]
        for member in found:
            member.silent = True
        return found

    def leads(self, name: str) -> bool:
        """Whether this one works alone in the warm start: the first that was heard of and still is."""
        return name == next((member.name for member in self if not member.silent), name)

    def resize(self, wanted: int) -> tuple[list[str], list[str]]:
        """Another number is wanted.

        Returns:
            Names that have to be enlisted, and those to be dismissed now; others leave when they have handed in what
            they have (`Member.leaving`).
        """
        before, self.wanted = self.wanted, wanted
        self._named = max(self._named, wanted)
        joining = [name for name in map(_name, range(before, wanted)) if name not in self._there]
        for member in self:
            member.leaving = member.name not in set(map(_name, range(wanted)))
        unheard = [name for name in map(_name, range(wanted, self._named)) if name not in self._there]
        return joining, unheard

    def leave(self, name: str) -> bool:
        """One is gone for good; says whether another of its name is wanted."""
        self._left[name] = self._there.pop(name).incarnation
        return name in map(_name, range(self.wanted))

    def usual_duration(self, unknown: float) -> float:
        """Seconds of a minibatch, the median of late."""
        found = sorted(duration for member in self for duration in member.durations)
        return max(found[len(found) // 2], 1e-3) if found else unknown


def _name(index: int) -> str:
    return f"replica-{index}"
