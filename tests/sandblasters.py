"""Programs of Sandblaster for tests: a small network and set in float64, run in simulated time, everything watched."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from squall.checkpoint.spec import CheckpointSpec
from squall.cluster.fault import Costs, Fault
from squall.cluster.program import Plan, Program
from squall.data.order import Order
from squall.engine.simulated import Simulated
from squall.errors import RunError
from squall.metrics import Loss
from squall.optim.lbfgs import TRIAL, TRIAL_GRADIENT, LbfgsSpec
from squall.records import Record, SaveBegan, Saved
from squall.run import arithmetic
from squall.run.spec import RunSpec
from squall.server.gradients import Gradients
from squall.server.layout import Layout
from squall.server.messages import Outcome, Push, Unit
from squall.server.snapshots import InMemory
from squall.server.vectors import Close, VectorShard, VectorSpec, first_layer
from squall.strategy.sandblaster import Coordinator, CoordinatorSpec, Replica, ReplicaSpec
from squall.strategy.sandblaster.batch import num_units
from squall.strategy.summary import Summary
from tests.downpours import CLASSES, EVEN, DriverDiedError, data


@dataclass
class Seen:
    """What shards did in one evaluation.

    Attributes:
        trial, gradient: slices by shard, when it was closed.
        sums: what the units added up to, float64, by shard: finer than the gradient that is made of them.
        units: those that were added, by shard.
        samples: that the coordinator said are in it.
    """

    trial: dict[int, torch.Tensor] = field(default_factory=dict)
    gradient: dict[int, torch.Tensor] = field(default_factory=dict)
    sums: dict[int, torch.Tensor] = field(default_factory=dict)
    units: dict[int, list[Unit]] = field(default_factory=lambda: defaultdict(list))
    samples: int = 0


class SeenShard(VectorShard):
    """A shard that notes what it adds up, and to what."""

    def __init__(self, spec: VectorSpec, points: InMemory, pairs: InMemory, seen: dict[int, Seen]) -> None:
        super().__init__(spec, points, pairs)
        self._seen = seen

    def _judged(self, push: Push, send: torch.Tensor) -> Outcome:
        outcome = super()._judged(push, send)
        if outcome == "applied":
            self._seen[self._evaluation].units[self.spec.slice.index].append(push.unit)
        return outcome

    def _close(self, close: Close) -> float:
        seen, index = self._seen[close.evaluation], self.spec.slice.index
        seen.sums[index] = torch.stack(self._sums[0]._folds).clone()
        penalty = super()._close(close)
        seen.trial[index] = self._vectors[TRIAL].clone()
        seen.gradient[index] = self._vectors[TRIAL_GRADIENT].clone()
        seen.samples = close.samples
        return penalty


class CountedCoordinator(Coordinator):
    """A coordinator that counts the bytes of what it tells shards and is told by them."""

    def __init__(self, spec: CoordinatorSpec, traffic: list[int]) -> None:
        super().__init__(spec)
        self._traffic = traffic

    async def main(self) -> Summary:
        shards: Any = self._shards
        ask = shards._all

        async def counted(method: str, values: Sequence[tuple[Any, ...]]) -> list[Any]:
            answers: list[Any] = await ask(method, values)
            self._traffic.append(sum(len(repr(_plain(value))) for value in (*values, *answers)))
            return answers

        shards._all = counted
        return await super().main()


def _plain(value: Any) -> Any:
    """With numbers that are as long as each other."""
    if isinstance(value, float):
        return f"{value:+.16e}"
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return [_plain(each) for each in vars(value).values()] if is_dataclass(value) else value


def network(
    normalised: bool = False, width: int = 5, hidden: int = 30, dtype: torch.dtype = torch.float64
) -> nn.Module:
    torch.manual_seed(3)
    layers: list[nn.Module] = [nn.Linear(width, hidden)]
    if normalised:
        layers.append(nn.BatchNorm1d(hidden))
    return nn.Sequential(*layers, nn.Tanh(), nn.Linear(hidden, 9), nn.Tanh(), nn.Linear(9, CLASSES)).to(dtype)


def step(model: nn.Module, batch: Any) -> tuple[Loss, dict[str, Any]]:
    inputs, labels = batch
    return Loss(F.cross_entropy(model(inputs), labels, reduction="sum"), len(labels)), {}


@dataclass
class Job:
    """One small minimisation.

    Attributes:
        portion: samples of a portion; `unit`: portions that are handed out at once.
        seen: filled while it runs, by evaluation.
        traffic: bytes of each round trip between coordinator and shards.
    """

    replicas: int = 1
    shards: int = 1
    portion: int = 4
    unit: int = 2
    history: int = 4
    iterations: int = 6
    decay: float = 0.01
    normalised: bool = False
    num_samples: int = 46
    width: int = 5
    hidden: int = 30
    lease_timeout: float = 5.0
    backups: bool = True
    checkpoint: str | None = "1step"
    dtype: torch.dtype = torch.float64
    step: Callable[[nn.Module, Any], Any] = step
    snapshot: int = 0
    carried: Mapping[str, Any] | None = None
    seen: dict[int, Seen] = field(default_factory=lambda: defaultdict(Seen))
    traffic: list[int] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = network(self.normalised, self.width, self.hidden, self.dtype)
        self.layout = Layout.of(self.model, weight_decay=self.decay)
        self.slices = self.layout.slices(self.shards)
        self.spec = RunSpec(epochs=1, global_batch_size=self.portion, worker_batch_size=self.portion)
        self.data = [(x.to(self.dtype), y) for x, y in data(self.num_samples, self.width)]
        self.order: Order = self.spec.order(len(self.data))
        self.lbfgs = LbfgsSpec(history=self.history, max_iterations=self.iterations, tolerance_gradient=1e-9)
        self.reach = self.history + 2
        vector = self.layout.vector(self.model)
        first = [first_layer(part, vector) for part in self.slices]
        self.points = InMemory(first)
        self.pairs = self.points.beside()
        self._gradients = Gradients(self.model, self.layout, self.spec, self.step, self.data)

    def program(self) -> Program:
        replica_spec = ReplicaSpec(self.layout, self.slices, self.order, self.unit)
        replica = Plan(partial(Replica, replica_spec, lambda: self._gradients), "replica")
        portions = self.order.num_steps
        specs = [
            VectorSpec(part, self.layout.dtype, self.history, portions, num_units(portions, self.unit), self.reach)
            for part in self.slices
        ]
        roles = {
            f"shard-{spec.slice.index}": Plan(partial(SeenShard, spec, self.points, self.pairs, self.seen), "shard")
            for spec in specs
        }
        roles |= {f"replica-{index}": replica for index in range(self.replicas)}
        spec = CoordinatorSpec(
            lbfgs=self.lbfgs,
            order=self.order,
            replicas=self.replicas,
            shards=self.shards,
            unit=self.unit,
            counters=(0,) * len(self.layout.counters),
            backups=self.backups,
            lease_timeout=self.lease_timeout,
            checkpoint=CheckpointSpec.of(self.checkpoint) if self.checkpoint else None,
            replica=replica,
            snapshot=self.snapshot,
            carried=self.carried,
        )
        coordinator = partial(CountedCoordinator, spec, self.traffic)
        roles["coordinator"] = Plan(coordinator, "coordinator", restarts=False)
        return Program(roles, "coordinator")

    def run(
        self,
        costs: Costs = EVEN,
        faults: Sequence[Fault] = (),
        seed: int = 0,
        asked: Callable[[], Sequence[tuple[str, Any]]] = tuple,
        most_events: float = 1e6,
    ) -> Summary:
        """Runs it; `engine` is there afterwards."""
        self.engine = Simulated(costs, faults, seed, most_events=most_events)
        before = arithmetic.enter(self.spec, torch.device("cpu"))
        try:
            summary: Summary = self.engine.run(self.program(), self.records.append, asked)
        except RunError as error:
            raise (DriverDiedError() if "standstill" in error.headline else error) from error
        finally:
            arithmetic.leave(before)
        return summary

    def go_back(self) -> None:
        """As a driver that goes on from the newest whole set of snapshots, with the records that belong to it."""
        saved = next((record for record in reversed(self.records) if isinstance(record, Saved)), None)
        self.snapshot = saved.number if saved is not None else 0
        for kept in (*self.points._kept, *self.pairs._kept):
            kept[:] = [snapshot for snapshot in kept if snapshot.number <= self.snapshot]
        del self.records[self.records.index(SaveBegan(self.snapshot)) if saved is not None else 0 :]
        self.carried = json.loads(json.dumps(saved.tally)) if saved is not None else None

    # -- what should have come of it --------------------------------------------------------------------------

    def direct(self, trial: torch.Tensor) -> tuple[float, torch.Tensor]:
        """Value and gradient over the whole set at once, decay included; without normalisation."""
        model = network(self.normalised, self.width, self.hidden)
        for (name, parameter), place in zip(model.named_parameters(), self.layout.parameters, strict=True):
            assert name == place.name
            parameter.data = place.view(trial).double()
        inputs = torch.stack([x for x, _ in self.data]).double()
        labels = torch.tensor([y for _, y in self.data])
        value = F.cross_entropy(model(inputs), labels)
        for parameter, treated in zip(model.parameters(), self.layout.treated, strict=True):
            value = value + treated.weight_decay / 2 * (parameter**2).sum()
        gradients = torch.autograd.grad(value, list(model.parameters()))
        vector = torch.zeros(self.layout.parameters_end, dtype=torch.float64)
        for gradient, place in zip(gradients, self.layout.parameters, strict=True):
            place.view(vector).copy_(gradient)
        return float(value.detach()), vector

    def errors(self) -> list[float]:
        """For each evaluation that was closed on all shards: how far its gradient is from the direct one."""
        found = []
        for seen in self.seen.values():
            if len(seen.gradient) == self.shards:
                trial, gradient = (
                    torch.cat([part[index] for index in range(self.shards)]) for part in (seen.trial, seen.gradient)
                )
                _, direct = self.direct(trial)
                found.append(float((gradient - direct).norm() / direct.norm()))
        return found

    def sums(self) -> dict[bytes, list[torch.Tensor]]:
        """By the trial's bits: the sums of each evaluation that was closed on all shards."""
        found = {}
        for seen in self.seen.values():
            if len(seen.gradient) == self.shards:
                trial = b"".join(seen.trial[index].numpy().tobytes() for index in range(self.shards))
                found[trial] = [seen.sums[index] for index in range(self.shards)]
        return found

    def point(self, number: int) -> torch.Tensor:
        """The weights in a snapshot."""
        return torch.cat([self.points.read(index, number).tensors["x"] for index in range(self.shards)])

    def end(self) -> torch.Tensor:
        """The weights in the newest snapshot."""
        return self.point(self.points.newest(0).number)
