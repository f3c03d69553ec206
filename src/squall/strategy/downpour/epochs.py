"""What came of an epoch: sums over the units that were settled in it, and its record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from squall.data.order import Order
from squall.optim.lr import Rate
from squall.records import EpochEnded
from squall.server.messages import Settled

Values = Mapping[str, float]


@dataclass
class Epoch:
    """Sums over the units that were settled since a mark.

    Attributes:
        began, over: seconds of the run.
    """

    began: float
    over: float = 0.0
    loss: float = 0.0
    count: float = 0.0
    samples: int = 0
    took: float = 0.0
    stalled: float = 0.0
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, settled: Settled) -> None:
        """Takes a unit in."""
        self.loss, self.count = self.loss + settled.loss, self.count + settled.count
        self.samples += settled.samples
        self.took, self.stalled = self.took + settled.seconds, self.stalled + settled.stalled
        for name, (total, count) in settled.metrics.items():
            before = self.metrics.get(name, (0.0, 0.0))
            self.metrics[name] = before[0] + total, before[1] + count

    def record(self, epoch: int, order: Order, rate: Rate, now: float, val: Values, test: Values) -> EpochEnded:
        """What is told of it, once it is over and measured."""
        spent, last = max(self.over - self.began, 1e-9), (epoch + 1) * order.steps_per_epoch - 1
        return EpochEnded(
            epoch=epoch,
            step=last,
            train_loss=self.loss / max(self.count, 1e-12),
            lr=rate.at_step(order, last),
            samples_per_second=self.samples / spent,
            spent={"compute": self.took - self.stalled, "communication": self.stalled},
            seconds=self.over,
            evaluation=now - self.over,
            train={name: total / max(count, 1e-12) for name, (total, count) in self.metrics.items()},
            val=val,
            test=test,
        )

    def state(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Epoch:
        """From its plain values."""
        metrics = {name: (float(total), float(count)) for name, (total, count) in state["metrics"].items()}
        return cls(**{**state, "metrics": metrics})
