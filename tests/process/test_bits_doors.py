"""Three doors, one path: a task, and the user's own loop, give the recipe's bits on any number of processes."""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import squall
from squall.cluster.world import World
from squall.records import Record
from tests.models import conv_with_dropout
from tests.process.bits import COSINE, RECIPES, Case, Outcome, assert_equal, by_recipe, cifar_task, outcome_of, outcomes

PHOTOS = "cifar-sgd-float32-augmented-smoothed-channels-last-ema"
FIELDS = {"epochs": 2, "global_batch_size": 40, "worker_batch_size": 5, "seed": 4, "eval_batch_size": 9}


class Noisy:
    """A user's data set that draws from all global generators while it reads a sample."""

    def __init__(self, num_samples: int, as_dict: bool = False) -> None:
        self.num_samples, self.as_dict = num_samples, as_dict

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> Any:
        clean = torch.linspace(-1, 1, 3 * 8 * 8).roll(index).view(3, 8, 8)
        image = clean * (0.5 + random.random()) + 0.1 * torch.randn(3, 8, 8) + 0.1 * float(np.random.rand())
        label = index * 7 % 4
        if self.as_dict:
            return {"image": image, "label": label, "weight": 1 + index % 3}
        return image, label


def own_net() -> nn.Module:
    return conv_with_dropout(num_classes=4)


def weighted(model: nn.Module, batch: dict[str, torch.Tensor]) -> Any:
    """A sum over weights instead of samples, a mean, and two metrics that need the whole set."""
    scores = model(batch["image"])
    weight = batch["weight"].float()
    loss = (F.cross_entropy(scores, batch["label"], reduction="none") * weight).sum()
    return squall.Loss(loss, count=weight.sum()), {
        "accuracy": squall.mean(scores.argmax(1) == batch["label"]),
        "auc": squall.gather(scores, batch["label"], squall.metrics.auroc),
        "f1": squall.gather(scores, batch["label"], squall.metrics.f1),
    }


def with_loss(out: Path, world: World | None, data: Path) -> Outcome:
    """`loss=` as in every PyTorch script (a mean, found out by the probe); 93 samples: the last minibatch has 13."""
    task = squall.Task(model=own_net, loss=F.cross_entropy, train=Noisy(93), val=Noisy(31), test=Noisy(20))
    recipe = squall.Recipe(**FIELDS, optimizer="adamw", lr=2e-3, weight_decay=0.05, clip_grad_norm=1.0)
    records: list[Record] = []
    return outcome_of(squall.train(task, recipe, out=out, world=world, sinks=(records.append,)), records)


def with_step(out: Path, world: World | None, data: Path) -> Outcome:
    """`step=` with a count of its own and gathered metrics; fewer evaluation batches than processes."""
    task = squall.Task(model=own_net, step=weighted, train=Noisy(93, True), test=Noisy(31, True))
    recipe = squall.Recipe(
        **FIELDS, optimizer="sgd", momentum=0.9, lr={"base": 0.1, **COSINE}, ema=0.9, last_batch="carry"
    )
    records: list[Record] = []
    return outcome_of(squall.train(task, recipe, out=out, world=world, sinks=(records.append,)), records)


def own_loop(out: Path, world: World | None, data: Path) -> Outcome:
    """The training of `with_loss` as a loop that Squall does not own."""
    records: list[Record] = []
    run = squall.Run(out, world=world, sinks=(records.append,), **FIELDS)
    model = own_net()
    norms = [p for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]
    others = [p for p in model.parameters() if all(p is not norm for norm in norms)]
    groups = [{"params": others}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, 2e-3, weight_decay=0.05, fused=True)
    model, optimizer = run.setup(model, optimizer)
    train, val, test = Noisy(93), Noisy(31), Noisy(20)

    def measured(part: Noisy) -> dict[str, float]:
        loss = run.evaluate(model, part, partial(F.cross_entropy, reduction="none"))
        hits = run.evaluate(model, part, lambda scores, labels: scores.argmax(1) == labels)
        return {"loss": loss.mean(), "accuracy": hits.mean()}

    for step in run.steps(train):
        for images, labels in step:
            step.backward(F.cross_entropy(model(images), labels) * len(labels))  # a mean made a sum, as the probe does
        step.clip_grad_norm_(1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step.ends_epoch:
            run.log(val=measured(val), test=measured(test))
    return outcome_of(run.finish(), records)


def own_loop_on_photos(out: Path, world: World | None, data: Path) -> Outcome:
    """The training of a recipe (augmented CIFAR-10, cosine rate, EMA) as a loop of one's own."""
    records: list[Record] = []
    recipe = squall.Recipe(**RECIPES[PHOTOS])
    task = cifar_task(recipe, data)
    fields = {"epochs": 2, "global_batch_size": 72, "worker_batch_size": 6, "ema": 0.9, "channels_last": True}
    run = squall.Run(out, world=world, sinks=(records.append,), eval_batch_size=17, **fields)
    model = task.model()
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    parts: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        parts[name.rpartition(".")[0] in norms].append(parameter)
    groups = [{"params": parts[False]}, {"params": parts[True], "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, 0.05, 0.9, weight_decay=5e-4, nesterov=True, fused=True)
    schedule = squall.lr(base=0.05, base_batch_size=72, schedule="cosine", warmup_epochs=1, warmup_from=0.01)
    model, optimizer = run.setup(model, optimizer, lr=schedule)
    for step in run.steps(task.train):
        for images, labels in step:
            step.backward(F.cross_entropy(model(images), labels, reduction="sum", label_smoothing=0.1))
        optimizer.step()
        optimizer.zero_grad()
    return outcome_of(run.finish(), records)


def cases() -> dict[str, Case]:
    return {
        "loss": with_loss,
        "step": with_step,
        "own loop": own_loop,
        "recipe on photos": partial(by_recipe, PHOTOS),
        "own loop on photos": own_loop_on_photos,
    }


@pytest.mark.parametrize("processes", [2, 3, 4, 6])
@pytest.mark.parametrize("name", [name for name in cases() if name != "recipe on photos"])
def test_each_door_gives_the_same_bits_on_any_number_of_processes(name: str, processes: int, real_data: Path) -> None:
    expected = assert_equal(cases, name, processes, real_data)
    assert len(expected.losses) == 6 if name != "step" else len(expected.losses) == 5


@pytest.mark.parametrize(("own", "trained"), [("own loop", "loss"), ("own loop on photos", "recipe on photos")])
def test_the_own_loop_gives_the_bits_of_squall_train(own: str, trained: str, real_data: Path) -> None:
    found = outcomes(cases, 1, real_data)[0]
    mine, theirs = found[own], found[trained]
    assert isinstance(mine, Outcome), mine
    assert isinstance(theirs, Outcome), theirs
    assert mine.weights == theirs.weights
    assert mine.files == theirs.files
    assert mine.losses == theirs.losses
    assert mine.ledger == theirs.ledger


def test_both_ways_to_evaluate_agree_and_gathered_metrics_come_from_the_whole_set(real_data: Path) -> None:
    found = outcomes(cases, 1, real_data)[0]
    own, trained = (json.loads(found[name].averages) for name in ("own loop", "loss"))
    for part in ("val", "test"):
        assert own[part]["accuracy"] == trained[part]["accuracy"]
        assert own[part]["loss"] == pytest.approx(trained[part]["loss"], rel=1e-6)
    assert set(json.loads(found["step"].averages)["test"]) == {"loss", "accuracy", "auc", "f1"}
