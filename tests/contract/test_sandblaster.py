"""Sandblaster L-BFGS in simulated time: the sums are right whoever computes them, and the way down is L-BFGS's."""

import itertools
from collections.abc import Callable
from math import inf, isfinite, isnan
from typing import Any

import pytest
import torch
from torch import nn

from squall.cluster.fault import Costs, Fault
from squall.errors import DivergedError
from squall.metrics import Loss
from squall.optim.lbfgs import minimise
from squall.optim.local import Local, finished
from squall.records import RoleChanged, Saved
from squall.strategy.sandblaster.batch import Batch, added
from tests import batch_schedules
from tests.downpours import EVEN, DriverDiedError
from tests.sandblasters import Job, network
from tests.sandblasters import step as plain


def alone(job: Job) -> tuple[Local, object]:
    """The same minimisation of one vector, by direct gradients."""

    def function(x: torch.Tensor, into: torch.Tensor) -> float:
        value, gradient = job.direct(x)
        into.copy_(gradient)
        return value

    local = Local(function, job.layout.vector(job.model)[: job.layout.parameters_end], job.history)
    state, _ = finished(minimise(local, job.lbfgs))
    return local, state


@pytest.mark.parametrize(("replicas", "shards"), [(1, 1), (3, 1), (1, 2), (4, 3)])
def test_it_is_lbfgs_on_the_whole_set(replicas: int, shards: int) -> None:
    """Whatever replicas and shards there are: the gradients are direct ones, and so is the way."""
    job = Job(replicas=replicas, shards=shards)
    local, state = alone(job)
    summary = job.run()
    assert summary.outcome == "finished"
    assert summary.values["iterations"] == job.iterations
    assert summary.values["minimum"]["outcome"] == "budget spent"
    assert max(job.errors()) < 1e-10
    assert len(job.errors()) == summary.values["evaluations"]
    assert summary.values["loss"] == pytest.approx(state.value, rel=1e-10)
    torch.testing.assert_close(job.point(summary.snapshot), local.x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("normalised", [False, True], ids=["plain", "batch normalisation"])
def test_the_course_is_the_same_bit_for_bit_with_any_number_of_replicas(normalised: bool) -> None:
    """Weights, loss and evaluations; statistics of a normalisation too."""
    ends = []
    for replicas in (1, 2, 3, 5):
        job = Job(replicas=replicas, shards=2, normalised=normalised, checkpoint=None)
        summary = job.run(Costs(minibatch=0.1, spread=0.5, latency=0.02), seed=replicas)
        last = [job.points.read(shard, summary.snapshot).tensors for shard in range(2)]
        ends.append([summary.values["loss"], summary.values["evaluations"], job.end(), *(t["buffers"] for t in last)])
        assert not summary.values["inexact"]
    for other in ends[1:]:
        assert other[:2] == ends[0][:2]
        assert all(torch.equal(a, b) for a, b in zip(other[2:], ends[0][2:], strict=True))


def test_each_portion_is_counted_once_in_each_evaluation() -> None:
    job = Job(replicas=3, shards=2)
    summary = job.run()
    portions = job.order.num_steps
    for seen in job.seen.values():
        assert seen.samples == job.num_samples
        for units in seen.units.values():
            assert sorted(portion for unit in units for portion in unit.minibatches) == list(range(portions))
    assert summary.values["portions"]["counted"] == portions * summary.values["evaluations"]
    assert summary.values["samples"] == job.num_samples * summary.values["evaluations"]


def test_the_loss_is_the_same_to_the_last_bit_for_any_number_of_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first evaluation: float64 sums in the portions' order. (Gradients are added up as they come.)"""
    losses: list[float] = []
    loss = Batch.loss.fget
    assert loss is not None

    def noted(batch: Batch) -> float:
        losses.append(loss(batch))
        return losses[-1]

    monkeypatch.setattr(Batch, "loss", property(noted))
    first = []
    for replicas, unit in ((1, 1), (1, 3), (4, 2)):
        losses.clear()
        Job(replicas=replicas, unit=unit, iterations=1, checkpoint=None).run()
        first.append(losses[0])
    assert first[0] == first[1] == first[2]


def test_d9_what_the_coordinator_says_and_hears_does_not_grow_with_the_network() -> None:
    """10^4 and 10^7 parameters: the same number of bytes in each round trip with the shards."""
    traffic = []
    for width, hidden in ((50, 180), (1000, 9900)):
        job = Job(width=width, hidden=hidden, history=2, iterations=2, num_samples=12, checkpoint=None, decay=0.0)
        job.run()
        traffic.append(job.traffic)
    assert 1e4 < Job(width=50, hidden=180).layout.size < 1.2e4
    assert traffic[0] == traffic[1]
    assert max(traffic[0]) < 4000


def test_d10_a_slow_replica_computes_fewer_portions() -> None:
    """Ten times as slow for good, of four: portions go to whoever is free."""
    job = Job(replicas=4, num_samples=400, unit=1, iterations=2, checkpoint=None, backups=False)
    summary = job.run(EVEN, [Fault("slow", "replica-1", 0.0, by=10.0)])
    done = {name: own["portions"] for name, own in summary.values["replicas"].items()}
    assert max(job.errors()) < 1e-10
    assert done["replica-1"] < 0.2 * done["replica-0"]
    assert sum(done.values()) == summary.values["portions"]["counted"]


def stragglers(backups: bool, seed: int) -> tuple[Job, float]:
    """Twenty replicas of which a fifth are five times as slow; seconds of an evaluation."""
    job = Job(replicas=20, num_samples=480, unit=2, iterations=2, checkpoint=None, backups=backups)
    costs = Costs(minibatch=0.1, spread=0.2, stragglers=0.2, slowdown=5.0, latency=0.0002, bandwidth=1e9, server=5e9)
    summary = job.run(costs, seed=seed)
    assert max(job.errors()) < 1e-10
    return job, summary.seconds / summary.values["evaluations"]


def test_d10_copies_of_what_takes_long_make_the_batch_shorter() -> None:
    """20 % stragglers, six clusters: the makespan with copies is shorter in each, and by a tenth over all."""
    pairs = [(stragglers(True, seed)[1], stragglers(False, seed)[1]) for seed in range(6)]
    assert all(with_copies <= without for with_copies, without in pairs), pairs
    assert sum(a for a, _ in pairs) < 0.9 * sum(b for _, b in pairs)


def test_a_copy_is_counted_once() -> None:
    job, _ = stragglers(True, seed=1)
    units = [unit for seen in job.seen.values() for unit in seen.units[0]]
    assert len(units) == len(job.seen) * job.order.num_steps / job.unit


def test_d10_a_replica_that_dies_in_a_batch_costs_its_unit_and_no_more() -> None:
    job = Job(replicas=3, num_samples=120, iterations=3)
    summary = job.run(faults=[Fault("kill", "replica-1", 0.55, lasts=2.0), Fault("kill", "replica-2", 1.3, lasts=inf)])
    assert summary.values["iterations"] == 3
    assert max(job.errors()) < 1e-10
    assert summary.values["set_backs"] == {"times": 0, "iterations": 0}
    changes = [record.change for record in job.records if isinstance(record, RoleChanged)]
    assert "restarted" in changes


@pytest.mark.parametrize("at", [0.4, 1.1, 2.3, 3.9, 5.2])
def test_a_shard_that_dies_sets_the_run_back_to_its_last_snapshot(at: float) -> None:
    """At most the iteration that was under way and the one that was being saved; the way is as without."""
    expected = Job(shards=2)
    expected.run()
    job = Job(shards=2)
    summary = job.run(faults=[Fault("kill", "shard-1", at, lasts=1.0)])
    assert summary.values["iterations"] == job.iterations
    assert summary.values["set_backs"]["times"] == 1
    assert summary.values["set_backs"]["iterations"] <= 1
    assert max(job.errors()) < 1e-10
    torch.testing.assert_close(job.end(), expected.end(), rtol=0, atol=1e-10)
    assert any("go back to their last snapshot" in str(record) for record in job.records)


def test_a_driver_that_dies_goes_on_with_the_history() -> None:
    """From the last snapshot: the next iterations are those that would have come, history included."""
    expected = Job(iterations=8)
    expected.run()
    job = Job(iterations=8)
    with pytest.raises(DriverDiedError):
        job.run(most_events=600)
    job.go_back()
    assert job.carried is not None
    assert job.carried["lbfgs"]["iterations"] >= 2
    assert len(job.carried["lbfgs"]["history"]["slots"]) >= 2
    job.seen.clear()
    summary = job.run(seed=5)
    assert summary.values["iterations"] == 8
    assert max(job.errors()) < 1e-10
    assert summary.values["evaluations"] == len(expected.seen)
    torch.testing.assert_close(job.end(), expected.end(), rtol=0, atol=1e-10)


def test_a_user_who_asks_gets_the_last_point() -> None:
    looks = itertools.count()
    job = Job(iterations=50, checkpoint=None)
    summary = job.run(asked=lambda: [("stop", "by Ctrl-C")] if next(looks) == 3 else [])
    assert summary.outcome == "stopped"
    assert 0 < summary.values["iterations"] < 50
    assert job.direct(job.point(summary.snapshot))[0] == pytest.approx(summary.values["loss"], rel=1e-12)


def test_statistics_of_a_normalisation_are_those_of_the_portions() -> None:
    """One update an iteration, by the samples' mean over portions; integer buffers count them."""
    job = Job(normalised=True, iterations=1, replicas=2, decay=0.0)
    summary = job.run()
    trials = [seen.trial[0] for seen in job.seen.values()]
    model = job.model
    expected = torch.zeros(job.layout.size - job.layout.parameters_end, dtype=torch.float64)
    start = job.layout.vector(network(True))[job.layout.parameters_end :]
    for portion in range(job.order.num_steps):
        samples = job.order.step(portion).num_samples
        weights = torch.cat([trials[-1], start])
        job._gradients.compute(portion, weights, [0], torch.zeros_like(weights), mean=False)
        expected += samples * weights[job.layout.parameters_end :]
    found = job.points.read(0, summary.snapshot).tensors["buffers"]
    torch.testing.assert_close(found, expected / job.num_samples, rtol=0, atol=1e-12)
    assert model.training
    saved = [record for record in job.records if isinstance(record, Saved)][-1]
    assert saved.tally["counters"] == [1]


def test_sums_of_what_is_not_finite_are_not_finite() -> None:
    assert added([1e308, 1e308]) == inf
    assert isnan(added([inf, -inf]))
    assert added([1.0, 1e100, 1.0, -1e100]) == 2.0


def test_a_step_to_where_the_loss_is_not_finite_is_too_long_and_a_start_there_is_an_error() -> None:
    """A wall: beyond it all losses are inf; the first trial lies there."""

    def walled(far: float) -> Callable[[nn.Module, Any], tuple[Loss, dict[str, Any]]]:
        def step(model: nn.Module, batch: Any) -> tuple[Loss, dict[str, Any]]:
            loss, metrics = plain(model, batch)
            moved = sum((p.detach() - q).abs().sum() for p, q in zip(model.parameters(), start, strict=True))
            return Loss(loss.sum * (inf if moved > far else 1.0), loss.count), metrics

        return step

    start = [parameter.detach().clone() for parameter in network().parameters()]
    job = Job(step=walled(0.2), iterations=1)
    summary = job.run()
    assert summary.values["evaluations"] > 2
    assert isfinite(summary.values["loss"])
    with pytest.raises(DivergedError, match="at the start"):
        Job(step=walled(-1.0)).run()


@pytest.mark.parametrize("first", range(0, 100, 10))
def test_fault_schedules(first: int) -> None:
    """A hundred of them (`make chaos` runs five hundred), each twice alike."""
    for seed in range(first, first + 10):
        assert batch_schedules.run(seed) == batch_schedules.run(seed)
