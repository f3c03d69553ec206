"""Random fault schedules for Sandblaster, each a function of its seed, and what must hold whatever happens.

python -m tests.batch_schedules --seeds 500
"""

from __future__ import annotations

import itertools
import random
from contextlib import suppress
from functools import cache
from math import inf

import torch

from squall.cluster.fault import Costs, Fault
from squall.strategy.summary import Summary
from tests.downpours import DriverDiedError
from tests.sandblasters import Job
from tests.seeds import main


class Watched(Job):
    """A job that somebody resizes, and whose driver may die."""

    asks: dict[int, int]
    """By number of the look: how many replicas there are to be from then on."""
    driver_dies: int | None
    """After so many events; a second driver goes on from the snapshots."""
    digest = ""

    def course(self, costs: Costs, faults: list[Fault], seed: int) -> Summary:
        """Runs the schedule: with what the user asks for, and perhaps in two sessions."""
        looks = itertools.count()

        def asked() -> list[tuple[str, int]]:
            number = next(looks)
            return [("resize", self.asks[number])] if number in self.asks else []

        if self.driver_dies is not None:
            with suppress(DriverDiedError):
                return self.run(costs, faults, seed, asked, most_events=self.driver_dies)
            self.digest, seed = self.engine.digest, seed + 1
            self.go_back()
            self.check_evaluations()
            self.seen.clear()  # numbers of evaluations come again
        summary = self.run(costs, faults, seed, asked, most_events=200_000)
        self.digest += self.engine.digest
        return summary

    def check_evaluations(self) -> None:
        """Of each evaluation that all shards closed: each portion is in it once, and the gradient is the direct one."""
        portions = list(range(self.order.num_steps))
        assert all(error < (1e-10 if self.dtype == torch.float64 else 1e-5) for error in self.errors())
        for seen in self.seen.values():
            if len(seen.gradient) == self.shards:
                assert seen.samples == self.num_samples
                for units in seen.units.values():
                    assert sorted(m for unit in units for m in unit.minibatches) == portions


def schedule(seed: int) -> tuple[Watched, Costs, list[Fault]]:
    """The job, the cluster and the faults of a seed."""
    draw = random.Random(seed)
    job = Watched(
        replicas=draw.randint(1, 5),
        shards=draw.randint(1, 3),
        unit=draw.choice([1, 2, 3]),
        backups=draw.random() < 0.7,
        checkpoint=draw.choice([None, "1step", "1step", "2step", "1s"]),
        lease_timeout=draw.choice([1.0, 5.0]),
        dtype=draw.choice([torch.float64, torch.float64, torch.float32]),
    )
    costs = Costs(
        minibatch=0.1,
        spread=draw.choice([0.0, 0.3]),
        stragglers=draw.choice([0.0, 0.3]),
        slowdown=draw.choice([3.0, 20.0]),
        latency=draw.choice([0.0002, 0.02]),
        bandwidth=draw.choice([1e6, 1e9]),
        server=draw.choice([1e6, 5e9]),
    )
    roles = [f"replica-{i}" for i in range(job.replicas)] + [f"shard-{i}" for i in range(job.shards)]
    length = 9.0 / job.replicas
    faults = []
    for _ in range(draw.randint(0, 8)):
        kind = draw.choice(["kill", "kill", "kill", "slow", "drop", "delay", "duplicate", "duplicate"])
        role = draw.choice(roles)
        at = draw.uniform(0.0, length)
        if kind == "kill":
            stays = role.startswith("replica") and role != "replica-0" and draw.random() < 0.3
            faults.append(Fault("kill", role, at, inf if stays else draw.choice([0.0, 0.05, 1.0, 6.0])))
        else:
            by = {"slow": draw.choice([3.0, 30.0]), "delay": draw.choice([0.05, 1.0, 40.0])}.get(kind, 1.0)
            faults.append(Fault(kind, role, at, draw.choice([0.1, 0.5, 3.0]), by))
    job.asks = {draw.randint(0, 8): draw.randint(1, 6) for _ in range(draw.choice([0, 0, 0, 1, 2]))}
    job.driver_dies = draw.randint(10, 800) if draw.random() < 0.3 else None
    return job, costs, faults


@cache
def undisturbed(
    shards: int, unit: int, dtype: torch.dtype
) -> tuple[float, torch.Tensor, dict[bytes, list[torch.Tensor]]]:
    """Loss, point and the sums of each evaluation where nothing goes wrong, with one replica."""
    job = Job(shards=shards, unit=unit, dtype=dtype)
    summary = job.run()
    return summary.values["loss"], job.point(summary.snapshot), job.sums()


def check(job: Watched, summary: Summary) -> None:
    """Every evaluation is right, and the way down is the one that it is without faults, bit for bit."""
    loss, point, sums = undisturbed(job.shards, job.unit, job.dtype)
    assert summary.outcome == "finished"
    assert summary.values["iterations"] == job.iterations
    job.check_evaluations()
    assert not summary.values["inexact"]
    assert summary.values["loss"] == loss
    assert torch.equal(job.point(summary.snapshot), point)
    assert abs(job.direct(job.point(summary.snapshot))[0] - loss) < (1e-10 if job.dtype == torch.float64 else 1e-6)
    for trial, found in job.sums().items():
        assert all(torch.equal(*pair) for pair in zip(found, sums[trial], strict=True))
    evaluations = summary.values["evaluations"]
    assert summary.values["portions"]["counted"] == evaluations * job.order.num_steps
    assert summary.values["samples"] == evaluations * job.num_samples
    done = sum(own["portions"] for own in summary.values["replicas"].values())
    assert done >= summary.values["portions"]["wasted"]


def run(seed: int) -> str:
    """Runs a seed's schedule and checks it; the hash of its course."""
    job, costs, faults = schedule(seed)
    check(job, job.course(costs, faults, seed))
    return job.digest


if __name__ == "__main__":
    main(run)
