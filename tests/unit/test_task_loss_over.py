"""`loss_over="worker"`: the loss of a virtual worker's batch, weighed by its samples once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import squall
from squall.errors import InputError
from squall.recipe import LossSpec
from squall.training.parts import loss_of
from tests.unit.runs import make_data, make_model

FIELDS: dict[str, Any] = {"epochs": 2, "global_batch_size": 8, "worker_batch_size": 4, "eval_batch_size": 3, "lr": 0.5}


def trained(loss_over: str, num_samples: int = 16, **task: Any) -> squall.Result:
    given = squall.Task(model=make_model, train=make_data(num_samples), val=make_data(11), **task)
    return squall.train(given, squall.Recipe(**FIELDS, loss_over=loss_over), sinks=())


@pytest.mark.parametrize("num_samples", [16, 19])
def test_a_mean_over_workers_is_the_mean_over_samples(num_samples: int) -> None:
    """Also for the last minibatch of 19 samples, whose workers have 2 and 1."""
    sample = trained("sample", num_samples, loss=F.cross_entropy)
    worker = trained("worker", num_samples, loss=F.cross_entropy)
    assert worker.values["weights_sha256"] == sample.values["weights_sha256"]
    assert worker.val == sample.val


def test_evaluation_gives_the_mean_loss_of_all_samples() -> None:
    models: list[nn.Module] = []

    def make() -> nn.Module:
        models.append(make_model())
        return models[-1]

    rows = make_data(11)
    task = squall.Task(model=make, loss=F.cross_entropy, train=make_data(), val=rows)
    found = squall.train(task, squall.Recipe(**FIELDS, loss_over="worker"), sinks=()).val["loss"]
    with torch.no_grad():
        scores = models[-1](torch.stack([row for row, _ in rows])).double()
    assert found == pytest.approx(float(F.cross_entropy(scores, torch.tensor([y for _, y in rows]))), rel=1e-6)


def test_a_step_of_ones_own_gives_the_workers_loss() -> None:
    def step(model: nn.Module, batch: Any) -> squall.Loss:
        return squall.Loss(F.cross_entropy(model(batch[0]), batch[1]), count=len(batch[1]))

    own, given = trained("worker", step=step), trained("worker", loss=F.cross_entropy)
    assert own.values["weights_sha256"] == given.values["weights_sha256"]
    assert own.val["loss"] == given.val["loss"]


def test_the_cross_entropy_of_a_recipe_follows_loss_over() -> None:
    over_samples, over_workers = (loss_of(LossSpec(), over)[0] for over in ("sample", "worker"))
    sample, worker = trained("sample", step=over_samples), trained("worker", step=over_workers)
    assert worker.val == pytest.approx(sample.val, rel=1e-5)


def test_a_loss_that_depends_on_the_batch_is_taken_as_it_is() -> None:
    """Class weights under a mean, which a loss over samples refuses."""
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0]))
    assert trained("worker", loss=weighted).outcome == "finished"


def test_one_value_a_sample_is_no_workers_loss() -> None:
    with pytest.raises(InputError, match=r"the loss gives a tensor of shape \(4,\)"):
        trained("worker", loss=nn.CrossEntropyLoss(reduction="none"))
