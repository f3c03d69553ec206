"""Which minibatches are handed out, to whom, and what becomes of them: pure bookkeeping, no clock, no process.

Each epoch's minibatches (numbers of its one permutation, `squall.data.order`) are cut into parts, one for each replica
that there is when the epoch begins. A replica keeps its part while it lives and takes its units from it in order; one
whose part is used up takes from the part that has most left, so that slow ones delay nobody, and the next epoch begins
when the last minibatch of this one is handed out::

    epoch      | part 0            | part 1            | part 2            |
    units      |[0][1 2 3][4 5 6]..|[40][41 42 43] ... |                       push_every = 3; a replica's first is 1

A unit is what one replica computes and pushes at once; it lies in one part. Units of replicas that died, or that take
too long, are handed out again as they were: a shard applies each once, whoever sends it. So every minibatch ends as
settled, and whoever settles it first is counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from squall.server.messages import Unit

FREE, LEASED, SETTLED = 0, 1, 2


@dataclass
class Outstanding:
    """A unit that is handed out and not settled: to whom (a worker may be any word), and when last."""

    unit: Unit
    workers: list[str]
    since: float


@dataclass
class _Part:
    """Minibatches next .. stop - 1 are still to be handed out, but for those that are not free."""

    next: int
    stop: int


@dataclass
class Pool:
    """All minibatches of a run.

    Attributes:
        per_epoch: minibatches of an epoch.
        total: of the run.
        before: the first minibatch that is not part of the warm start, which one replica does alone.
    """

    per_epoch: int
    total: int
    before: int = 0
    settled: int = 0
    outstanding: dict[Unit, Outstanding] = field(default_factory=dict)
    _states: bytearray = field(default_factory=bytearray)
    _returned: deque[Unit] = field(default_factory=deque)
    _parts: list[_Part] = field(default_factory=list)
    _next_epoch: int = 0

    def __post_init__(self) -> None:
        self._states = bytearray(self.total)

    @property
    def warm(self) -> bool:
        """Whether the warm start is over."""
        return self.settled >= self.before

    @property
    def over(self) -> bool:
        """Whether every minibatch is settled."""
        return self.settled == self.total

    def restore(self, states: Sequence[bytes], most: int) -> None:
        """Takes over what shards hold: what all have is settled, what none has is free, the rest is handed out again.

        Arguments:
            states: of each shard, a byte a minibatch, 0 where it has not dealt with it.
            most: minibatches of a unit. One holds minibatches that the same shards have: they refuse it as a whole.
        """
        unit: list[int] = []
        before: tuple[bool, ...] | None = None
        for minibatch, having in enumerate(zip(*states, strict=True)):
            pattern = tuple(state != 0 for state in having)
            if unit and (pattern != before or len(unit) == most or minibatch % self.per_epoch == 0):
                self._returned.append(Unit(unit[0], len(unit)))
                unit = []
            before = pattern
            if all(pattern):
                self._states[minibatch] = SETTLED
                self.settled += 1
            elif any(pattern):
                self._states[minibatch] = LEASED
                unit.append(minibatch)
        if unit:
            self._returned.append(Unit(unit[0], len(unit)))

    def lease(self, worker: str, part: int, parts: int, wanted: int, now: float) -> Unit | None:
        """The next unit of a worker, or None where nothing is left (for now: units may come back).

        Arguments:
            part: the worker's, below `parts`, the number of parts an epoch that begins now is cut into.
            wanted: minibatches; fewer where the part or the warm start ends.
        """
        unit = self._returned.popleft() if self._returned else self._fresh(part, parts, wanted)
        if unit is None:
            return None
        known = self.outstanding.setdefault(unit, Outstanding(unit, [], now))
        known.workers.append(worker)
        known.since = now
        for minibatch in unit.minibatches:
            self._states[minibatch] = LEASED
        return unit

    def settle(self, unit: Unit) -> bool:
        """Notes that all shards have answered for a unit; False where somebody else was first."""
        if self._states[unit.first] == SETTLED:
            return False
        for minibatch in unit.minibatches:
            self._states[minibatch] = SETTLED
        self.settled += unit.count
        self.outstanding.pop(unit, None)
        if unit in self._returned:
            self._returned.remove(unit)
        return True

    def release(self, worker: str) -> list[Unit]:
        """Hands back what a worker that is gone had and nobody else has."""
        return [unit for unit in list(self.outstanding) if self.hand_back(unit, worker)]

    def hand_back(self, unit: Unit, worker: str) -> bool:
        """A worker will not settle a unit; whether nobody else has it, so that it is to be handed out again."""
        known = self.outstanding.get(unit)
        if known is None or worker not in known.workers:
            return False
        known.workers = [other for other in known.workers if other != worker]
        if known.workers:
            return False
        del self.outstanding[unit]
        self._returned.append(unit)
        return True

    def again(self, worker: str, patience: float, now: float) -> Unit | None:
        """The unit that is outstanding longest, to be computed by another too.

        Arguments:
            patience: seconds for each of its minibatches that a unit is left to whoever has it.

        Returns:
            None if all are younger, or the worker's own.
        """
        old = [
            known
            for known in self.outstanding.values()
            if worker not in known.workers and now - known.since > patience * known.unit.count
        ]
        best = min(old, key=lambda known: (known.since, known.unit.first), default=None)
        if best is None:
            return None
        best.workers.append(worker)
        best.since = now
        return best.unit

    def _fresh(self, part: int, parts: int, wanted: int) -> Unit | None:
        while not any(self._left(each) for each in self._parts):
            if not self._has_epochs():
                return None
            self._parts = list(_cut(self._next_epoch * self.per_epoch, self.per_epoch, parts))
            self._next_epoch += 1
        own = self._parts[part] if part < len(self._parts) else None
        source = own if own is not None and self._left(own) else max(self._parts, key=self._left)
        first = source.next
        border = self.before if first < self.before else source.stop
        stop = first + 1
        while stop < min(first + wanted, source.stop, border) and self._states[stop] == FREE:
            stop += 1
        source.next = stop
        return Unit(first, stop - first)

    def _left(self, part: _Part) -> int:
        """Free minibatches of a part; moves past those that are not."""
        while part.next < part.stop and self._states[part.next] != FREE:
            part.next += 1
        return part.stop - part.next

    def _has_epochs(self) -> bool:
        return self._next_epoch * self.per_epoch < self.total


def _cut(start: int, length: int, parts: int) -> Iterator[_Part]:
    for part in range(parts):
        yield _Part(start + length * part // parts, start + length * (part + 1) // parts)
