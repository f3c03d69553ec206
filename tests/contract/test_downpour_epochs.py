"""What is told of epochs: each once, in order, with its own weights, however long measuring takes and whoever dies."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
import torch

from squall.errors import RunError
from squall.metrics import Loss
from squall.records import EpochEnded, Pushed
from tests.downpours import DriverDiedError, Job, step


def epochs(job: Job) -> list[EpochEnded]:
    return [record for record in job.records if isinstance(record, EpochEnded)]


def total(weights: torch.Tensor, counters: list[int]) -> Any:
    return {}, {"total": float(weights.double().sum())}


@pytest.mark.parametrize(("measured_for", "begins_for"), [(15.0, 0.0), (1.0, 50.0)])  # an epoch has 12
def test_an_epoch_is_measured_with_its_own_weights(measured_for: float, begins_for: float) -> None:
    job = Job(epochs=5, evaluates=True, measure=total, measured_for=measured_for, begins_for=begins_for)
    job.run()
    assert [record.epoch for record in epochs(job)] == list(range(5))
    for record in epochs(job):
        at = [weights for (_, version), weights in job.given.items() if version.count - record.step in (1, 2)]
        assert record.test["total"] in [float(weights.double().sum()) for weights in at]
    assert len({record.test["total"] for record in epochs(job)}) == 5


def test_weights_that_wait_to_be_measured_are_not_without_number() -> None:
    job = Job(epochs=12, evaluates=True, measure=total, measured_for=100.0)
    job.run()
    assert [record.epoch for record in epochs(job)] == list(range(12))
    assert 4 <= len({record.test["total"] for record in epochs(job)}) <= 6  # the last ones find the final weights


def test_measuring_may_take_longer_than_a_silent_role_is_waited_for() -> None:
    job = Job(epochs=2, evaluates=True, measure=total, measured_for=20_000.0)
    assert job.run().outcome == "finished"
    assert [record.epoch for record in epochs(job)] == [0, 1]
    assert epochs(job)[-1].evaluation > 2000.0


@pytest.mark.parametrize("dies", range(150, 500, 50))
def test_each_epoch_is_told_once_though_the_driver_dies(dies: int) -> None:
    job = Job(replicas=2, epochs=5, checkpoint="1ep", evaluates=True, measure=total, measured_for=9.0)
    with pytest.raises(DriverDiedError):
        job.run(most_events=dies)
    job.go_back()
    job.given.clear()
    summary = job.run()
    assert [record.epoch for record in epochs(job)] == list(range(5))
    assert summary.values["samples"] == 5 * len(job.data)
    assert all(record.samples_per_second > 0 for record in epochs(job))


def test_a_run_that_is_asked_to_stop_while_its_last_epoch_is_measured_is_finished() -> None:
    job = Job(epochs=2, evaluates=True, measure=total, measured_for=5000.0)

    def asked() -> list[tuple[str, str]]:
        told = [record for record in job.records if isinstance(record, Pushed)]
        return [("stop", "")] if len(told) == job.order.num_steps else []

    summary = job.run(asked=asked)
    assert summary.values["minibatches"]["settled"] == job.order.num_steps
    assert summary.outcome == "finished"


def test_a_minibatch_that_counts_nothing_is_an_error_before_it_is_pushed() -> None:
    seen = count()

    def empty(model: Any, batch: Any) -> Any:
        loss, metrics = step(model, batch)
        return (Loss(loss.sum, 0.0) if next(seen) == 7 else loss), metrics

    job = Job(epochs=2, step=empty)
    with pytest.raises(RunError, match="the losses of minibatch 7 count 0 samples"):
        job.run()
    assert all(bool(gradient.isfinite().all()) for _, gradient in job.applied[0])
    assert len(job.applied[0]) == 7
