"""What is left when samples are skipped, or when there is nothing to average: a named error or nan, never a crash."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import squall
from squall.errors import InputError, UserCodeError
from squall.records import EpochEnded, Record, Stepped
from squall.run import evaluate
from tests.unit.runs import CLASSES, make_data, make_model, start, summed, train


class Gappy:
    """16 rows, of which some cannot be read."""

    def __init__(self, *skipped: int) -> None:
        self.rows, self.skipped = make_data(16), skipped

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.read(index, 0, 0)

    def read(self, index: int, epoch: int, seed: int) -> Any:
        return None if index in self.skipped else self.rows[index]


class Broken(Gappy):
    """Row 3 raises."""

    def read(self, index: int, epoch: int, seed: int) -> Any:
        if index == 3:
            raise KeyError("three")
        return self.rows[index]


def first_pass(size: int) -> list[int]:
    run = start(make_model())
    try:
        ids: list[int] = run.spec.order(16).draw(run.spec.order(16).step(0), 0).ids.tolist()[:size]
        return ids
    finally:
        run.close()


def step_of(model: nn.Module, batch: Any) -> Any:
    inputs, targets = batch
    empty = torch.zeros(0)
    return squall.Loss(summed(model, inputs, targets), len(targets)), {"rare": squall.mean(empty)}


def mean_loss(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(inputs), targets)


# -- training ----------------------------------------------------------------------------------------------------


def test_a_pass_without_samples_is_named_with_its_samples_and_the_remedy() -> None:
    gone = first_pass(4)
    with pytest.raises(InputError, match="step 0: all samples of a pass were skipped") as error:
        train(make_model(), data=Gappy(*gone))
    assert dict(error.value.rows)["found"] == (
        f"4 of 4 samples could not be read: train[{gone[0]}], train[{gone[1]}], train[{gone[2]}] ..."
    )
    assert dict(error.value.rows)["to do"] == "repair or delete these files, or a larger worker_batch_size"


@pytest.mark.parametrize(("size", "fuse"), [(3, 1), (3, 2)])
def test_a_worker_of_one_sample_is_refused_under_batch_normalisation(size: int, fuse: int) -> None:
    model = make_model(nn.Linear(5, CLASSES), nn.BatchNorm1d(CLASSES))
    gone = first_pass(4)[:size]
    with pytest.raises(InputError, match=r"leave a virtual worker of one, .* has batch normalisation") as error:
        train(model, data=Gappy(*gone), fuse=fuse)
    assert f"train[{gone[0]}]" in dict(error.value.rows)["found"]


@pytest.mark.parametrize("size", [1, 2])
def test_larger_workers_go_on_with_what_is_left(size: int) -> None:
    model = make_model(nn.Linear(5, CLASSES), nn.BatchNorm1d(CLASSES))
    result = train(model, mean_loss, data=Gappy(*first_pass(size)), loss_over="worker")
    assert result.values["ledger"]["skipped"] == size


def test_a_metric_over_no_elements_is_nan() -> None:
    records: list[Record] = []
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = squall.Run(None, sinks=(records.append,), epochs=1, global_batch_size=8, worker_batch_size=4)
    try:
        run.setup(model, optimizer)
        for step in run.steps(make_data()):
            for batch in step:
                loss, metrics = step_of(model, batch)
                step.backward(loss.sum, metrics=metrics)
            optimizer.step()
            optimizer.zero_grad()
            if step.ends_epoch:
                found = run.averages(model, make_data(), step_of)
        run.finish()
    finally:
        run.close()
    assert math.isnan(found["rare"])
    assert math.isfinite(found["loss"])
    stepped = [record.metrics["rare"] for record in records if isinstance(record, Stepped)]
    ended = [record.train["rare"] for record in records if isinstance(record, EpochEnded)]
    assert len(stepped) == 2
    assert len(ended) == 1
    assert all(map(math.isnan, stepped + ended))


# -- evaluation --------------------------------------------------------------------------------------------------


def test_an_empty_set_is_refused_by_its_name() -> None:
    model = make_model()
    run = start(model)
    try:
        with pytest.raises(InputError, match="the test set is empty"):
            evaluate.averages(run.spec, run.world, model, [], step_of, name="test")
        with pytest.raises(InputError, match="the data set is empty"):
            run.evaluate(model, [], lambda scores, labels: labels)
    finally:
        run.close()


def test_a_broken_sample_is_called_by_its_sets_name() -> None:
    model = make_model()
    run = start(model)
    try:
        with pytest.raises(UserCodeError, match=r"KeyError at val\[3\]"):
            evaluate.averages(run.spec, run.world, model, Broken(), step_of, name="val")
        with pytest.raises(UserCodeError, match=r"KeyError at data\[3\]"):
            run.evaluate(model, Broken(), lambda scores, labels: labels)
    finally:
        run.close()
