"""Downpour SGD, prepared of a recipe: shards with a rule, replicas, a coordinator and an evaluator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from squall.cluster.program import Plan, Program
from squall.optim.rules import RuleSpec
from squall.records import Started
from squall.server.shard import Shard, ShardSpec, Snapshot, Snapshots, first_snapshot
from squall.strategy.downpour import Coordinator, CoordinatorSpec, Evaluator, EvaluatorSpec, Replica, ReplicaSpec
from squall.strategy.summary import Summary
from squall.training.prepared import Lent
from squall.training.roles import Built, Origin


class Downpour:
    """A Downpour training, prepared.

    Arguments:
        built: the driver's network and sets.
        origin: from which role processes build theirs.
        shared: all roles live in this process, and borrow one network.
    """

    unit = "minibatch"

    def __init__(self, built: Built, origin: Origin, *, shared: bool) -> None:
        recipe = origin.recipe
        assert recipe.downpour is not None
        self._built, self._recipe, self._downpour = built, recipe, recipe.downpour
        self._lent = Lent(built, origin, shared=shared)
        self.layout = built.layout
        self.slices = self.layout.slices(self._downpour.shards)
        self.order = built.spec.order(len(built.task.train))
        self.rate = recipe.lr.rate()
        optimizer = recipe.optimizer
        rule = RuleSpec(optimizer.name, optimizer.momentum, optimizer.eps)
        counters = len(self.layout.counters)
        self.shards = [
            ShardSpec(part, rule, self.rate, self.order, 0 if part.index else counters, self._downpour.max_staleness)
            for part in self.slices
        ]

    def first_snapshots(self) -> list[Snapshot]:
        """As of `Prepared`."""
        vector, counters = self.layout.vector(self._built.model), self._built.counters()
        return [first_snapshot(spec, vector, counters) for spec in self.shards]

    def program(self, snapshots: Snapshots, number: int, carried: Mapping[str, Any] | None) -> Program:
        """As of `Prepared`."""
        downpour = self._downpour
        replica = Plan(partial(Replica, self._replica(), self._lent.gradients()), "replica")
        roles = {
            f"shard-{spec.slice.index}": Plan(partial(Shard, spec, snapshots), "shard", cpus=0.0)
            for spec in self.shards
        }
        roles |= {f"replica-{index}": replica for index in range(downpour.replicas)}
        task = self._built.task
        measures = task.val is not None or task.test is not None
        if measures:
            evaluator = EvaluatorSpec(self.layout, self.slices)
            make = partial(Evaluator, evaluator, self._lent.measure())
            roles["evaluator"] = Plan(make, "evaluator", cpus=0.0, beside_driver=True, urgent=False)
        spec = CoordinatorSpec(
            order=self.order,
            rate=self.rate,
            replicas=downpour.replicas,
            shards=downpour.shards,
            push_every=downpour.push_every,
            warm_start=downpour.warm_minibatches(self.order.steps_per_epoch),
            lease_timeout=downpour.lease_seconds,
            checkpoint=self._recipe.checkpoint.rule(),
            evaluator="evaluator" if measures else None,
            replica=replica,
            first_snapshot=number + 1,
            carried=carried,
        )
        coordinator = partial(Coordinator, spec)
        roles["coordinator"] = Plan(coordinator, "coordinator", restarts=False, cpus=0.0, beside_driver=True)
        return Program(roles, "coordinator")

    def started(self, name: str, folder: Path | None, prints: Mapping[str, Any], engine: str) -> Started:
        """As of `Prepared`."""
        spec = self._built.spec
        return Started(
            name=name,
            folder=str(folder) if folder else "",
            processes=self._downpour.replicas,
            seed=spec.seed,
            fingerprint=dict(prints),
            num_steps=self.order.num_steps,
            steps_per_epoch=self.order.steps_per_epoch,
            epochs=spec.epochs,
            global_batch_size=spec.worker_batch_size,
            worker_batch_size=spec.worker_batch_size,
            num_samples=self.order.num_samples,
            num_parameters=sum(p.numel() for p in self._built.model.parameters()),
            strategy=self._recipe.strategy,
            replicas=self._downpour.replicas,
            shards=self._downpour.shards,
            engine=engine,
        )

    def _replica(self) -> ReplicaSpec:
        downpour = self._downpour
        return ReplicaSpec(
            self.layout,
            self.slices,
            downpour.fetch_every,
            downpour.push_every,
            downpour.own_rate,
            self.rate,
            self.order,
        )

    def weights(self, found: Sequence[Snapshot], summary: Summary) -> tuple[torch.Tensor, list[int]]:
        """As of `Prepared`."""
        return torch.cat([each.tensors["weights"] for each in found]), found[0].tensors["counters"].tolist()
