"""A function that is a sum of portions, minimised by roles: replicas, shards and a coordinator, as Sandblaster's.

    objective(x, 0) + objective(x, 1) + ... + objective(x, P - 1)

What a network's portion of samples is there, a summand is here; the rest, from leases to exact sums, is the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import nan
from pathlib import Path
from typing import Any

import torch

from squall.checkpoint.spec import CheckpointSpec
from squall.cluster.program import Engine, Plan, Program
from squall.errors import DivergedError, RunError
from squall.optim.lbfgs import LbfgsSpec, X
from squall.records import EpochEnded, Record
from squall.run.spec import RunSpec
from squall.server.disk import FOLDER, OnDisk
from squall.server.gradients import Sums
from squall.server.layout import Decay, Layout
from squall.server.shard import Snapshots
from squall.server.snapshots import InMemory
from squall.server.vectors import VectorShard, VectorSpec, first_layer
from squall.strategy.sandblaster import Coordinator, CoordinatorSpec, Replica, ReplicaSpec
from squall.strategy.summary import Summary
from squall.training.solver import Flat, Iteration, Minimum
from squall.training.users import guarded

_REACH = 2


class Portions:
    """What a replica computes with: the objective, where a network would be.

    Arguments:
        objective: (x, portion) -> a scalar.
        flat: how x lies in the vector.
    """

    device = torch.device("cpu")

    def __init__(self, objective: Callable[..., torch.Tensor], flat: Flat) -> None:
        self._objective, self._flat = objective, flat

    def compute(
        self, minibatch: int, weights: torch.Tensor, counters: list[int], into: torch.Tensor, *, mean: bool = True
    ) -> Sums:
        """A portion's value and gradient; the count of all portions together is 1, so that they are added up."""
        at = f"portion {minibatch} of the objective"
        value = guarded(lambda: self._flat.evaluated(self._objective, weights, into, minibatch), at)
        return Sums(loss=value, count=float(minibatch == 0), samples=1)


def minimised(
    objective: Callable[..., torch.Tensor],
    flat: Flat,
    spec: LbfgsSpec,
    engine: str,
    portions: int,
    replicas: int,
    shards: int,
    callback: Callable[[Iteration], None] | None,
) -> Minimum[Any]:
    """Minimises by roles; arguments and errors as of `squall.minimize`."""
    dtype = flat.start.dtype
    layout = Layout(tuple(flat.places), tuple(Decay() for _ in flat.places), (), (), dtype)
    slices = layout.slices(shards)
    order = RunSpec(epochs=1, global_batch_size=1, worker_batch_size=1).order(portions)
    first = [first_layer(part, flat.start.cpu()) for part in slices]

    def program(snapshots: Snapshots) -> Program:
        pairs, reach = snapshots.beside(), spec.history + _REACH
        replica = Plan(
            partial(Replica, ReplicaSpec(layout, slices, order, 1), partial(Portions, objective, flat)), "replica"
        )
        roles = {f"replica-{index}": replica for index in range(replicas)}
        for part in slices:
            own = VectorSpec(part, dtype, spec.history, portions, portions, reach)
            make = partial(VectorShard, own, snapshots, pairs)
            roles[f"shard-{part.index}"] = Plan(make, "shard", cpus=0.0)
        every = CheckpointSpec.of("1step")
        chief = partial(Coordinator, CoordinatorSpec(spec, order, replicas, shards, checkpoint=every, replica=replica))
        roles["coordinator"] = Plan(chief, "coordinator", restarts=False, cpus=0.0, beside_driver=True)
        return Program(roles, "coordinator")

    def sink(record: Record) -> None:
        if callback is not None and isinstance(record, EpochEnded):
            norm = record.train["gradient_norm"]
            callback(Iteration(record.epoch + 1, record.step + 1, record.train_loss, norm))

    with tempfile.TemporaryDirectory(prefix="squall-minimize-", ignore_cleanup_errors=True) as folder:
        snapshots: InMemory | OnDisk = InMemory(first)
        if engine == "ray":
            snapshots = OnDisk(Path(folder) / FOLDER)
            snapshots.begin(first)
        try:
            with _engine(engine, replicas, shards, Path(folder)) as runs:
                summary: Summary = runs.run(program(snapshots), sink)
        except DivergedError as error:
            start = [part.clone() for part in flat.parts(flat.start)]
            return Minimum(flat.like(start), nan, nan, 0, 1, "not finite", error.headline, error.rows[0][1])
        x = torch.cat([snapshots.read(part.index, summary.snapshot).tensors[X] for part in slices])
    return _minimum(flat, x.to(flat.start.device), summary)


@contextmanager
def _engine(name: str, replicas: int, shards: int, folder: Path) -> Iterator[Engine]:
    if name == "simulated":
        from squall.engine.simulated import Simulated

        yield Simulated()
        return
    from squall.engine.ray.cluster import local
    from squall.engine.ray.engine import OnRay

    with local(cpus=replicas + shards + 1, folder=folder) as ray:
        yield OnRay(ray, own=True)


def _minimum(flat: Flat, x: torch.Tensor, summary: Summary) -> Minimum[Any]:
    values = summary.values
    if "minimum" not in values:
        raise RunError(f"the minimisation {summary.outcome}", [("found", f"after {summary.done} iterations")])
    ended = values["minimum"]
    parts = [part.clone() for part in flat.parts(x)]
    numbers = values["loss"], values["gradient_norm"], values["iterations"], values["evaluations"]
    return Minimum(flat.like(parts), *numbers, ended["outcome"], ended["why"], ended["advice"])
