"""One evaluation of the batch: which portions are handed out, and what came of them. Pure bookkeeping."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from squall.server.leases import Pool
from squall.server.messages import Settled


@dataclass
class Batch:
    """The portions of one evaluation.

    Attributes:
        number: of the evaluation.
        pool: of the portions.
        count, samples: sums over them.
        metrics: (sum, count) by name.
        counters: how the integer buffers change in each portion.
    """

    number: int
    pool: Pool
    count: float = 0.0
    samples: int = 0
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)
    counters: tuple[int, ...] = ()
    _losses: dict[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, number: int, portions: int) -> Batch:
        """An evaluation that begins."""
        return cls(number, Pool(portions, portions))

    def take(self, settled: Settled) -> bool:
        """Takes a unit in that all shards have; False where it was there before."""
        if not self.pool.settle(settled.unit):
            return False
        self.count, self.samples = self.count + settled.count, self.samples + settled.samples
        for name, (total, count) in settled.metrics.items():
            before = self.metrics.get(name, (0.0, 0.0))
            self.metrics[name] = before[0] + total, before[1] + count
        self._losses.update(zip(settled.unit.minibatches, settled.losses, strict=True))
        self.counters = settled.counters
        return True

    @property
    def loss(self) -> float:
        """The mean, from sums of portions in their order: the same whoever computed them, and when."""
        return math.fsum(self._losses[portion] for portion in sorted(self._losses)) / max(self.count, 1e-12)
