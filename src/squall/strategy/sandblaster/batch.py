"""One evaluation of the batch: which units are handed out, and what came of them. Pure bookkeeping.

A unit is always the same portions, whoever there is to compute it: its sums have the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from squall.server.leases import Pool
from squall.server.messages import Settled, Unit


@dataclass
class Batch:
    """The portions of one evaluation.

    Attributes:
        number: of the evaluation.
        portions: of the batch; `size`: of a unit, the last may have fewer.
        pool: of the units.
        count, samples: sums over them.
        metrics: (sum, count) by name.
        counters: how the integer buffers change in each portion.
    """

    number: int
    portions: int
    size: int
    pool: Pool
    count: float = 0.0
    samples: int = 0
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)
    counters: tuple[int, ...] = ()
    _losses: dict[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, number: int, portions: int, size: int, *, first_alone: bool) -> Batch:
        """An evaluation that begins; where the first unit is alone, others wait until it is settled."""
        units = num_units(portions, size)
        return cls(number, portions, size, Pool(units, units, before=int(first_alone)))

    def lease(self, worker: str, part: int, parts: int, leads: bool, now: float) -> Unit | None:
        """The next unit for a worker; as of `Pool.lease`.

        Arguments:
            leads: it is the one that computes the first unit where that is alone.
        """
        if not self.pool.warm and not leads:
            return None
        found = self.pool.lease(worker, *((part, parts) if not self.pool.before else (0, 1)), 1, now)
        return self._portions_of(found)

    def again(self, worker: str, patience: float, now: float) -> Unit | None:
        """A unit that another takes long for; as of `Pool.again`."""
        return self._portions_of(self.pool.again(worker, patience, now))

    def hand_back(self, unit: Unit, worker: str) -> None:
        """A worker will not settle a unit."""
        self.pool.hand_back(self._unit_of(unit), worker)

    def take(self, settled: Settled) -> bool:
        """Takes a unit in that all shards have; False where it was there before."""
        if not self.pool.settle(self._unit_of(settled.unit)):
            return False
        self.count, self.samples = self.count + settled.count, self.samples + settled.samples
        for name, (total, count) in settled.metrics.items():
            before = self.metrics.get(name, (0.0, 0.0))
            self.metrics[name] = before[0] + total, before[1] + count
        self._losses.update(zip(settled.unit.minibatches, settled.losses, strict=True))
        self.counters = settled.counters
        return True

    def _portions_of(self, unit: Unit | None) -> Unit | None:
        if unit is None:
            return None
        first = unit.first * self.size
        return Unit(first, min(self.size, self.portions - first))

    def _unit_of(self, portions: Unit) -> Unit:
        return Unit(portions.first // self.size, 1)

    @property
    def loss(self) -> float:
        """The mean, from sums of portions in their order: the same whoever computed them, and when."""
        return added([self._losses[portion] for portion in sorted(self._losses)]) / max(self.count, 1e-12)


def added(values: Sequence[float]) -> float:
    """Their sum, rounded once; what is not finite is not either in the sum."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # beyond float64's range; inf - inf
        return sum(values)


def num_units(portions: int, size: int) -> int:
    """Units of so many portions, the last of which may have fewer."""
    return -(-portions // size)
