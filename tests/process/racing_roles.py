"""A program of replicas that race for shards on real Ray; each end notes in a file what it sent or applied.

python -m tests.process.racing_roles FOLDER REPLICAS SHARDS
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from squall.cluster.program import Plan, Program
from squall.engine.ray.cluster import local
from squall.engine.ray.engine import OnRay
from squall.optim.lr import Rate
from squall.optim.rules import RuleSpec
from squall.run import arithmetic
from squall.server.disk import OnDisk
from squall.server.gradients import Gradients
from squall.server.messages import Push
from squall.server.shard import Shard, ShardSpec
from squall.strategy.downpour import Coordinator, CoordinatorSpec, Replica, ReplicaSpec
from tests.downpours import Job, data, network, step


def note(file: Path, **facts: Any) -> None:
    """A line at the end of a file; whole, whoever else writes."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, json.dumps(facts).encode() + b"\n")
    os.close(descriptor)


def sha(tensor: torch.Tensor) -> str:
    """What a tensor holds now."""
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


class Noting(Replica):
    """Notes what it hands to each shard, before it does."""

    def __init__(self, spec: ReplicaSpec, make: Callable[[], Gradients], folder: Path) -> None:
        super().__init__(spec, make)
        self._folder = folder

    async def _pushed(self, unit: Any, full: torch.Tensor, *others: Any) -> None:
        for part in self.spec.slices:
            found = {"shard": part.index, "first": unit.first, "count": unit.count, "by": self.here.name}
            note(self._folder / f"{self.here.name}.computed", **found, sha=sha(full[part.start : part.stop]))
        await super()._pushed(unit, full, *others)


def audit(folder: Path, shard: int, push: Push, send: torch.Tensor) -> None:
    """Notes what a shard applies."""
    found = {"shard": shard, "first": push.unit.first, "count": push.unit.count, "by": push.sender.name}
    note(folder / f"shard-{shard}.applied", **found, sha=sha(send))


def gradients(num_samples: int, epochs: int) -> Gradients:
    """What a replica computes with, in its own process."""
    job = Job(num_samples=num_samples, epochs=epochs)
    arithmetic.enter(job.spec, torch.device("cpu"))
    return Gradients(network(), job.layout, job.spec, step, data(job.num_samples))


def shard(folder: Path, spec: ShardSpec) -> Shard:
    """A shard that notes."""
    return Shard(spec, OnDisk(folder / "server"), partial(audit, folder, spec.slice.index))


def program(job: Job, folder: Path) -> Program:
    """The roles of a job, as processes make them."""
    replica = Plan(partial(Noting, job._replica(), partial(gradients, job.num_samples, job.epochs), folder), "replica")
    roles = {f"shard-{s.slice.index}": Plan(partial(shard, folder, s), "shard", cpus=0.0) for s in job.shard_specs}
    roles |= {f"replica-{index}": replica for index in range(job.replicas)}
    order = CoordinatorSpec(job.order, Rate(base=job.lr), job.replicas, job.shards, job.push_every, replica=replica)
    return Program(
        {**roles, "coordinator": Plan(partial(Coordinator, order), "coordinator", restarts=False)}, "coordinator"
    )


def main(folder: Path, replicas: int, shards: int) -> None:
    """Runs it and says what it came to."""
    rule = RuleSpec("adagrad")
    job = Job(replicas, shards, epochs=4, push_every=2, fetch_every=2, num_samples=400, rule=rule, lr=0.01)
    OnDisk(folder / "server").begin([job.snapshots.newest(index) for index in range(shards)])
    with local(cpus=replicas, folder=folder) as cluster:
        summary = OnRay(cluster, folder / "logs", own=True).run(program(job, folder), lambda record: None)
    print(json.dumps({"steps": job.order.num_steps, **summary.values}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
