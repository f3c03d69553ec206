"""Random fault schedules for Downpour, each a function of its seed, and what must hold whatever happens.

python -m tests.schedules --seeds 1000
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from contextlib import suppress
from math import inf

import torch

from squall.cluster.fault import Costs, Fault
from squall.optim.rules import RuleSpec
from squall.records import EpochEnded, Pushed
from squall.server.messages import Push
from squall.server.shard import Snapshot
from squall.strategy.downpour import Summary
from tests.downpours import DriverDiedError, Job
from tests.seeds import main


class Watched(Job):
    """A job whose shards' restarts are followed: what was applied and not saved is gone."""

    lost = 0
    restarts = 0
    asks: dict[int, int]
    """By number of the look: how many replicas there are to be from then on."""
    driver_dies: int | None
    """After so many events; a second driver goes on from the snapshots."""

    def __post_init__(self) -> None:
        super().__post_init__()
        newest = self.snapshots.newest

        def noted(shard: int) -> Snapshot:
            snapshot = newest(shard)
            gone = self.applied[shard][snapshot.count :]
            self.lost += sum(push.unit.count for push, _ in gone)
            self.restarts += bool(gone)
            del self.applied[shard][snapshot.count :]
            return snapshot

        self.snapshots.newest = noted  # type: ignore[method-assign]

    def _audit(self, shard: int, push: Push, gradient: torch.Tensor) -> None:
        before = {m for other, _ in self.applied[shard] for m in other.unit.minibatches}
        assert not before & set(push.unit.minibatches), "a minibatch was applied twice"
        super()._audit(shard, push, gradient)

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
            self.given.clear()  # versions begin again
        summary = self.run(costs, faults, seed, asked, most_events=200_000)
        self.digest += self.engine.digest
        return summary


def schedule(seed: int) -> tuple[Watched, Costs, list[Fault]]:
    """The job, the cluster and the faults of a seed."""
    draw = random.Random(seed)
    job = Watched(
        replicas=draw.randint(1, 5),
        shards=draw.randint(1, 3),
        epochs=2,
        fetch_every=draw.choice([1, 1, 2, 3]),
        push_every=draw.choice([1, 1, 2, 3]),
        rule=RuleSpec(draw.choice(["sgd", "adagrad", "rmsprop"])),
        lr=0.01,
        local_lr=draw.choice([None, 0.0, 0.01]),
        warm_start=draw.choice([0, 0, 5, 12]),
        max_staleness=draw.choice([None, None, 2, 6]),
        checkpoint=draw.choice([None, "5step", "1ep", "1s"]),
        normalised=draw.random() < 0.3,
        lease_timeout=draw.choice([1.0, 5.0]),
        evaluates=draw.random() < 0.3,
    )
    costs = Costs(
        minibatch=0.1,
        spread=draw.choice([0.0, 0.3]),
        stragglers=draw.choice([0.0, 0.3]),
        latency=draw.choice([0.0002, 0.02]),
        bandwidth=draw.choice([1e6, 1e9]),
        server=draw.choice([1e6, 5e9]),
    )
    roles = [f"replica-{i}" for i in range(job.replicas)] + [f"shard-{i}" for i in range(job.shards)]
    roles += ["evaluator"] * job.evaluates
    length = 2.4 / job.replicas
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


def check(job: Watched, summary: Summary) -> None:
    """Every push is accounted for."""
    assert summary.outcome == "finished"
    counts = summary.values["minibatches"]
    assert counts["settled"] == counts["of"] == job.order.num_steps
    for answers in summary.values["pushes"]["shards"]:
        assert sum(answers.values()) == summary.values["pushes"]["computed"]
    ours = job.layout.parameters_end
    for shard, part in enumerate(job.slices):
        applied = job.applied[shard]
        found = counts["shards"][shard]
        minibatches = [m for push, _ in applied for m in push.unit.minibatches]
        assert len(set(minibatches)) == len(minibatches) == found["applied"]
        assert found["applied"] + found["dropped"] + found["lost"] == counts["of"]
        assert found["restarts"] or not found["lost"]
        stop = min(part.stop, ours)
        for push, gradient in applied:
            variants = itertools.product(*(job.computed[m] for m in push.unit.minibatches))
            width = max(stop - part.start, 0)
            assert any(torch.equal(gradient[:width], total(v)[part.start : stop]) for v in variants), (
                "not what was computed"
            )
        if job.rule.name == "sgd":
            weights = job.initial()[part.start : stop]
            for _, gradient in applied:
                weights = weights.add(gradient[: len(weights)], alpha=-job.lr)
            assert torch.equal(weights, job.snapshots._kept[shard][-1].tensors["weights"][: len(weights)])
    pushes = [record for record in job.records if isinstance(record, Pushed)]
    told = Counter(m for p in pushes for m in range(p.minibatch, p.minibatch + p.minibatches))
    assert counts["of"] - len(told) <= counts["unreported"]
    assert told.total() == counts["of"] - counts["unreported"] + counts["redone"]
    assert job.driver_dies is not None or not counts["unreported"] + counts["redone"]
    assert summary.values["pushes"]["computed"] == len(pushes) + summary.values["pushes"]["repeated"]
    assert summary.values["samples"] == sum(job.order.step(m).num_samples for m in range(counts["of"]))
    assert [record.epoch for record in job.records if isinstance(record, EpochEnded)] == list(range(job.epochs))


def total(gradients: tuple[torch.Tensor, ...]) -> torch.Tensor:
    found = gradients[0]
    for gradient in gradients[1:]:
        found = found + gradient
    return found


def run(seed: int) -> str:
    """Runs a seed's schedule and checks it; the hash of its course."""
    job, costs, faults = schedule(seed)
    check(job, job.course(costs, faults, seed))
    return job.digest


if __name__ == "__main__":
    main(run)
