"""Programs of Downpour for tests: a small network and set, run in simulated time, with everything counted."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from squall.checkpoint.spec import CheckpointSpec
from squall.cluster.fault import Costs, Fault
from squall.cluster.program import Cost, Plan, Program
from squall.engine.simulated import Simulated
from squall.errors import RunError
from squall.metrics import Loss
from squall.optim.lr import Rate
from squall.optim.rules import RuleSpec
from squall.records import Record, SaveBegan, Saved
from squall.run import arithmetic
from squall.run.spec import RunSpec
from squall.server.gradients import Gradients
from squall.server.layout import Layout
from squall.server.messages import Fetch, Fetched, Push
from squall.server.shard import Shard, ShardSpec, first_snapshot
from squall.server.snapshots import InMemory
from squall.strategy.downpour import (
    Coordinator,
    CoordinatorSpec,
    Evaluator,
    EvaluatorSpec,
    Replica,
    ReplicaSpec,
    Summary,
)
from squall.strategy.evaluator import Measure

EVEN = Costs(minibatch=0.1, spread=0.0, stragglers=0.0, latency=0.0002, bandwidth=1e9, server=5e9)
CLASSES = 3


class DriverDiedError(Exception):
    """The engine was given so many events and no more."""


class SeenShard(Shard):
    """A shard that notes what it gave out under which version."""

    def __init__(self, spec: ShardSpec, snapshots: InMemory, audit: Any, given: dict[Any, torch.Tensor]) -> None:
        super().__init__(spec, snapshots, audit)
        self._given = given

    def _written(self, fetch: Fetch, into: torch.Tensor) -> Fetched:
        found = super()._written(fetch, into)
        self._given.setdefault((self.spec.slice.index, found.version), into.clone())
        return found


class SeenReplica(Replica):
    """A replica that looks whether what it computes with is what a shard gave out, whole and of one version."""

    def __init__(self, spec: ReplicaSpec, make: Callable[[], Gradients], given: dict[Any, torch.Tensor]) -> None:
        super().__init__(spec, make)
        self._given = given

    async def _arrived(self) -> None:
        await super()._arrived()
        for part, version in zip(self.spec.slices, self._base, strict=True):
            assert torch.equal(self._weights[part.start : part.stop], self._given[part.index, version])


class SlowEvaluator(Evaluator):
    """An evaluator that takes as long as so many minibatches, and as others to begin."""

    def __init__(self, spec: EvaluatorSpec, make: Callable[[], Measure], minibatches: float, begins_for: float) -> None:
        super().__init__(spec, make)
        self._minibatches, self._begins_for = minibatches, begins_for

    async def begin(self) -> None:
        await self.here.compute(lambda: None, Cost(self._begins_for))
        await super().begin()
        here: Any = self.here
        compute, cost = here.compute, Cost(self._minibatches)
        here.compute = lambda work: compute(work, cost)


def data(num_samples: int = 48, width: int = 5) -> list[tuple[torch.Tensor, int]]:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(num_samples, width, generator=generator)
    labels = torch.randint(CLASSES, (num_samples,), generator=generator)
    return [(x, int(y)) for x, y in zip(inputs, labels, strict=True)]


def network(normalised: bool = False, width: int = 5) -> nn.Module:
    torch.manual_seed(3)
    layers: list[nn.Module] = [nn.Linear(width, 30)]
    if normalised:
        layers.append(nn.BatchNorm1d(30))
    return nn.Sequential(*layers, nn.Tanh(), nn.Linear(30, 9), nn.Tanh(), nn.Linear(9, CLASSES))


def step(model: nn.Module, batch: Any) -> tuple[Loss, dict[str, Any]]:
    inputs, labels = batch
    return Loss(F.cross_entropy(model(inputs), labels, reduction="sum"), len(labels)), {}


@dataclass
class Job:
    """One small training.

    Attributes:
        applied: filled while it runs: for each shard the (push, copy of its gradient) in the order of application.
        computed: filled while it runs: the gradient of each minibatch that was computed, as often as it was.
    """

    replicas: int = 1
    shards: int = 1
    epochs: int = 2
    batch: int = 4
    fetch_every: int = 1
    push_every: int = 1
    rule: RuleSpec = field(default_factory=RuleSpec)
    lr: float = 0.1
    local_lr: float | None = None
    warm_start: int = 0
    max_staleness: int | None = None
    checkpoint: str | None = None
    decay: float = 0.0
    normalised: bool = False
    num_samples: int = 48
    lease_timeout: float = 5.0
    evaluates: bool = False
    clip: float | None = None
    step: Callable[[nn.Module, Any], Any] = step
    measure: Measure = lambda weights, counters: ({}, {})
    measured_for: float = 0.0  # minibatches that it takes as long as
    begins_for: float = 0.0
    first_snapshot: int = 1
    carried: Mapping[str, Any] | None = None
    applied: dict[int, list[tuple[Push, torch.Tensor]]] = field(default_factory=lambda: defaultdict(list))
    computed: dict[int, list[torch.Tensor]] = field(default_factory=lambda: defaultdict(list))
    records: list[Record] = field(default_factory=list)
    given: dict[Any, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model = network(self.normalised)
        self.layout = Layout.of(self.model, weight_decay=self.decay)
        self.slices = self.layout.slices(self.shards)
        self.spec = RunSpec(epochs=self.epochs, global_batch_size=self.batch, worker_batch_size=self.batch)
        self.data = data(self.num_samples)
        self.order = self.spec.order(len(self.data))
        vector = self.layout.vector(self.model)
        counters = torch.zeros(len(self.layout.counters), dtype=torch.int64)
        self.shard_specs = [
            ShardSpec(
                part,
                self.rule,
                Rate(base=self.lr),
                self.order,
                len(self.layout.counters) if not part.index else 0,
                self.max_staleness,
            )
            for part in self.slices
        ]
        self.snapshots = InMemory([first_snapshot(spec, vector, counters) for spec in self.shard_specs])
        self._gradients = Gradients(self.model, self.layout, self.spec, self.step, self.data, clip_grad_norm=self.clip)
        self._watch(self._gradients)

    def _watch(self, gradients: Gradients) -> None:
        compute = gradients.compute

        def noted(minibatch: int, weights: torch.Tensor, counters: list[int], into: torch.Tensor) -> Any:
            found = compute(minibatch, weights, counters, into)
            self.computed[minibatch].append(into[: self.layout.parameters_end].clone())
            return found

        gradients.compute = noted  # type: ignore[method-assign]

    def _audit(self, shard: int, push: Push, gradient: torch.Tensor) -> None:
        self.applied[shard].append((push, gradient.clone()))

    def program(self) -> Program:
        replica = Plan(partial(SeenReplica, self._replica(), lambda: self._gradients, self.given), "replica")
        roles = {
            f"shard-{spec.slice.index}": Plan(
                partial(SeenShard, spec, self.snapshots, partial(self._audit, spec.slice.index), self.given), "shard"
            )
            for spec in self.shard_specs
        }
        roles |= {f"replica-{index}": replica for index in range(self.replicas)}
        if self.evaluates:
            evaluator = EvaluatorSpec(self.layout, self.slices)
            roles["evaluator"] = Plan(
                partial(SlowEvaluator, evaluator, lambda: self.measure, self.measured_for, self.begins_for), "evaluator"
            )
        spec = CoordinatorSpec(
            order=self.order,
            rate=Rate(base=self.lr),
            replicas=self.replicas,
            shards=self.shards,
            push_every=self.push_every,
            warm_start=self.warm_start,
            lease_timeout=self.lease_timeout,
            checkpoint=CheckpointSpec.of(self.checkpoint) if self.checkpoint else None,
            evaluator="evaluator" if self.evaluates else None,
            replica=replica,
            first_snapshot=self.first_snapshot,
            carried=self.carried,
        )
        roles["coordinator"] = Plan(partial(Coordinator, spec), "coordinator", restarts=False)
        return Program(roles, "coordinator")

    def go_back(self) -> None:
        """As a driver that goes on from the newest whole set of snapshots, with the records that belong to it."""
        saved = next((record for record in reversed(self.records) if isinstance(record, Saved)), None)
        number = saved.number if saved is not None else 0
        for kept in self.snapshots._kept:
            kept[:] = [snapshot for snapshot in kept if snapshot.number <= number]
        del self.records[self.records.index(SaveBegan(number)) if saved is not None else 0 :]
        self.first_snapshot = number + 1
        self.carried = json.loads(json.dumps(saved.tally)) if saved is not None else None

    def _replica(self) -> ReplicaSpec:
        return ReplicaSpec(
            self.layout,
            self.slices,
            self.fetch_every,
            self.push_every,
            self.local_lr,
            Rate(base=self.lr),
            self.order,
        )

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

    def weights(self) -> torch.Tensor:
        """The server's vector at the end, from the shards' last snapshots."""
        return torch.cat([self.snapshots.newest(index).tensors["weights"] for index in range(self.shards)])

    def initial(self) -> torch.Tensor:
        return self.layout.vector(network(self.normalised))
