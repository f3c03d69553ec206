"""Epochs of a Downpour run: sums over the units that were settled in each, its measurement, and its record.

An epoch is over when as many minibatches are settled as it has. It is measured then, with the weights of that moment,
while replicas go on; so nothing of the next epoch is handed out before there is somebody who measures. Epochs are told
in their order, each once: those that a session had not told yet are the next one's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from squall.cluster.program import Here, Task
from squall.data.order import Order
from squall.optim.lr import Rate
from squall.records import EpochEnded
from squall.server.client import until_answered, worked
from squall.server.leases import Pool
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


class Epochs:
    """All of a run, as its coordinator follows them.

    Arguments:
        here: the coordinator's engine.
        order, rate: of the run.
        evaluator: its role's name; None where there is nothing to measure.
        patience: seconds of silence after which it is given up.
        carried: of the session before (`state`).
    """

    def __init__(
        self,
        here: Here,
        order: Order,
        rate: Rate,
        evaluator: str | None,
        patience: float,
        carried: Mapping[str, Any] | None,
    ) -> None:
        self._here, self._order, self._rate, self._evaluator, self._patience = here, order, rate, evaluator, patience
        epochs = [Epoch.of(state) for state in carried["epochs"]] if carried is not None else [Epoch(here.now())]
        told = int(carried["epochs_told"]) if carried is not None else 0
        *over, self._now = epochs
        self._untold = dict(enumerate(over, told))
        self._over = told + len(over)
        self._mark = 0
        self._preparing: Task[None] | None = None
        self._telling: Task[None] | None = None

    def start(self, settled: int, ready: Callable[[], None]) -> None:
        """Goes on with what the session before had not told; `ready` is called when somebody is there who measures."""
        if self._evaluator is not None:
            self._preparing = self._here.start(self._prepared(self._evaluator, ready))
        for epoch in self._untold:
            self._measure(epoch)
        self._end(settled)
        self._mark = (self._over + 1) * self._order.steps_per_epoch

    def add(self, settled: Settled, total: int) -> None:
        """Takes a unit in; `total` are settled now."""
        self._now.add(settled)
        self._end(total)

    def wait(self, pool: Pool) -> bool:
        """Whether what is next belongs to another epoch than the first, and nobody is there who measures that one."""
        if self._preparing is None or self._preparing.done:
            return False
        under_way = sum(known.unit.count for known in pool.outstanding.values())
        return pool.settled + under_way >= self._mark

    async def told(self) -> None:
        """Waits until all that are over are told."""
        if self._telling is not None:
            await self._telling

    def state(self) -> dict[str, Any]:
        """Plain values, for a session that goes on: how many are told, and the sums of those that are not."""
        untold = [*self._untold.values(), self._now]
        return {"epochs_told": self._over - len(self._untold), "epochs": [epoch.state() for epoch in untold]}

    def _end(self, settled: int) -> None:
        while settled >= (self._over + 1) * self._order.steps_per_epoch:
            now, epoch = self._here.now(), self._over
            self._now.over, self._untold[epoch] = now, self._now
            self._over, self._now = epoch + 1, Epoch(now)
            self._measure(epoch)

    async def _prepared(self, evaluator: str, ready: Callable[[], None]) -> None:
        handle = self._here.handle(evaluator)
        await until_answered(self._here, evaluator, lambda: handle.call("ready"), self._patience)
        ready()

    def _measure(self, epoch: int) -> None:
        self._telling = self._here.start(self._measured(epoch, self._telling))

    async def _measured(self, epoch: int, before: Task[None] | None) -> None:
        val: Values = {}
        test: Values = {}
        if self._evaluator is not None:
            val, test = await worked(self._here, self._evaluator, "measure", epoch, patience=self._patience)
        if before is not None:
            await before
        over = self._untold.pop(epoch)
        self._here.emit(over.record(epoch, self._order, self._rate, self._here.now(), val, test))
