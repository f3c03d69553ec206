"""Sandblaster L-BFGS, prepared of a recipe: shards of vectors, replicas for portions, a coordinator, an evaluator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from squall.cluster.program import Plan, Program
from squall.optim.lbfgs import TRIAL, LbfgsSpec, X
from squall.optim.linesearch import SearchSpec
from squall.records import Started
from squall.server.shard import Snapshot, Snapshots
from squall.server.vectors import BUFFERS, VectorShard, VectorSpec, first_layer
from squall.strategy.evaluator import Evaluator, EvaluatorSpec
from squall.strategy.sandblaster import Coordinator, CoordinatorSpec, Replica, ReplicaSpec
from squall.strategy.sandblaster.batch import num_units
from squall.strategy.summary import Summary
from squall.training.prepared import Lent
from squall.training.roles import Built, Origin

_REACH = 2  # snapshots after a whole history, in which a pair is saved again


class Sandblaster:
    """A Sandblaster training, prepared.

    Arguments:
        built: the driver's network and sets.
        origin: from which role processes build theirs.
        shared: all roles live in this process, and borrow one network.
    """

    unit = "iteration"

    def __init__(self, built: Built, origin: Origin, *, shared: bool) -> None:
        recipe = origin.recipe
        assert recipe.sandblaster is not None
        self._built, self._recipe, self._own = built, recipe, recipe.sandblaster
        self._lent = Lent(built, origin, shared=shared)
        self.layout = built.layout
        self.slices = self.layout.slices(self._own.shards)
        self.order = replace(built.spec, epochs=1).order(len(built.task.train))
        self.lbfgs = LbfgsSpec(
            history=self._own.history,
            line_search=self._own.line_search,
            search=SearchSpec(noise=self._own.noise),
            damping=self._own.own_damping,
            tolerance_gradient=self._own.tolerance_gradient,
            tolerance_step=self._own.tolerance_step,
            max_evaluations=recipe.epochs,
        )

    def first_snapshots(self) -> list[Snapshot]:
        """As of `Prepared`."""
        vector = self.layout.vector(self._built.model)
        return [first_layer(part, vector) for part in self.slices]

    def program(self, snapshots: Snapshots, number: int, carried: Mapping[str, Any] | None) -> Program:
        """As of `Prepared`."""
        own, task = self._own, self._built.task
        pairs = snapshots.beside()
        spec = ReplicaSpec(self.layout, self.slices, self.order, own.unit)
        replica = Plan(partial(Replica, spec, self._lent.gradients()), "replica")
        roles = {f"shard-{part.index}": self._shard(part.index, snapshots, pairs) for part in self.slices}
        roles |= {f"replica-{index}": replica for index in range(own.replicas)}
        measures = task.val is not None or task.test is not None
        if measures:
            evaluator = EvaluatorSpec(self.layout, self.slices, vector=X)
            make = partial(Evaluator, evaluator, self._lent.measure())
            roles["evaluator"] = Plan(make, "evaluator", cpus=0.0, beside_driver=True, urgent=False)
        coordinator = CoordinatorSpec(
            lbfgs=self.lbfgs,
            order=self.order,
            replicas=own.replicas,
            shards=own.shards,
            unit=own.unit,
            counters=tuple(self._built.counters().tolist()),
            backups=own.backups,
            lease_timeout=own.lease_seconds,
            checkpoint=self._recipe.checkpoint.rule(),
            evaluator="evaluator" if measures else None,
            replica=replica,
            snapshot=number,
            carried=carried,
            advice={
                "budget spent": f"epochs={2 * self._recipe.epochs}, or a wider sandblaster.tolerance_gradient",
                "no descent": "as far as rounding lets one see this is the optimum: a wider sandblaster.noise goes on",
            },
        )
        chief = partial(Coordinator, coordinator)
        roles["coordinator"] = Plan(chief, "coordinator", restarts=False, cpus=0.0, beside_driver=True)
        return Program(roles, "coordinator")

    def started(self, name: str, folder: Path | None, prints: Mapping[str, Any], engine: str) -> Started:
        """As of `Prepared`."""
        spec = self._built.spec
        return Started(
            name=name,
            folder=str(folder) if folder else "",
            processes=self._own.replicas,
            seed=spec.seed,
            fingerprint=dict(prints),
            num_steps=spec.epochs,
            steps_per_epoch=1,
            epochs=spec.epochs,
            global_batch_size=self.order.num_samples,
            worker_batch_size=spec.worker_batch_size,
            num_samples=self.order.num_samples,
            num_parameters=sum(p.numel() for p in self._built.model.parameters()),
            strategy=self._recipe.strategy,
            replicas=self._own.replicas,
            shards=self._own.shards,
            engine=engine,
        )

    def weights(self, found: Sequence[Snapshot], summary: Summary) -> tuple[torch.Tensor, list[int]]:
        """As of `Prepared`; the start where no iteration was finished."""
        point = TRIAL if summary.snapshot == 0 else X
        parts = [each.tensors[key] for each in found for key in (point, BUFFERS)]  # buffers lie at the vector's end
        return torch.cat(parts), list(summary.counters)

    def _shard(self, index: int, points: Snapshots, pairs: Snapshots) -> Plan:
        history, portions = self._own.history, self.order.num_steps
        units = num_units(portions, self._own.unit)
        spec = VectorSpec(self.slices[index], self.layout.dtype, history, portions, units, history + _REACH)
        return Plan(partial(VectorShard, spec, points, pairs), "shard", cpus=0.0)
