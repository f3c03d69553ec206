"""A loss is given as in any script; how it treats samples is found out, and what depends on the batch is refused."""

from __future__ import annotations

from collections import namedtuple
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import squall
from squall.data.batches import Inspected, read
from squall.data.order import Draw
from squall.errors import InputError, UserCodeError
from squall.metrics import auroc, f1
from squall.run.guards import refuse_ignored
from squall.task import probe
from tests.unit.runs import CLASSES, make_data, make_model

GENERATOR = torch.Generator().manual_seed(1)
SCORES = torch.randn(11, CLASSES, generator=GENERATOR)
LABELS = torch.arange(11) % CLASSES
FIELDS: dict[str, Any] = {"epochs": 1, "global_batch_size": 8, "worker_batch_size": 4, "eval_batch_size": 3}


def one_hot(labels: torch.Tensor) -> torch.Tensor:
    return F.one_hot(labels, CLASSES).float()


LOSSES = {
    "samples": partial(F.cross_entropy, reduction="none"),
    "sum": partial(F.cross_entropy, reduction="sum"),
    "mean": F.cross_entropy,
    "smoothed mean": partial(F.cross_entropy, label_smoothing=0.1),
    "mean of squares": lambda out, y: F.mse_loss(out, one_hot(y)),
    "batchmean": lambda out, y: F.kl_div(F.log_softmax(out, 1), one_hot(y), reduction="batchmean"),
    "sum of a column": lambda out, y: out[:, 0].sum(),
    "samples by values": lambda out, y: (out - one_hot(y)).square(),
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("samples", "samples"),
        ("sum", "sum"),
        ("mean", "mean"),
        ("smoothed mean", "mean"),
        ("mean of squares", "mean"),
        ("batchmean", "mean"),
        ("sum of a column", "sum"),
        ("samples by values", "samples"),
    ],
)
def test_the_probe_tells_how_a_loss_treats_samples(name: str, kind: str) -> None:
    assert probe(LOSSES[name], SCORES, LABELS) == kind


@pytest.mark.parametrize("kind", ["mean", "sum", "samples"])
def test_all_three_kinds_train_the_same_network(kind: str) -> None:
    """19 samples: the last minibatch has workers of 2 and 1, where a mean of means would weigh them alike."""

    def trained(name: str) -> torch.Tensor:
        models: list[nn.Module] = []

        def make() -> nn.Module:
            models.append(make_model().double())
            return models[-1]

        task = squall.Task(model=make, loss=LOSSES[name], train=make_data(19, torch.float64))
        squall.train(task, squall.Recipe(**FIELDS, lr=0.5))
        return models[-1].weight.detach()

    torch.testing.assert_close(trained(kind), trained("sum"), rtol=1e-12, atol=1e-13)


def contrastive(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs @ outputs.T, torch.arange(len(outputs)))


@pytest.mark.parametrize(
    "loss",
    [
        partial(F.cross_entropy, weight=torch.tensor([1.0, 2.0, 5.0])),
        partial(F.cross_entropy, ignore_index=1),
        contrastive,
        lambda out, y: F.cross_entropy(out, y) + out.norm(),
        lambda out, y: F.cross_entropy(out, y, reduction="sum").sqrt(),
    ],
    ids=["class weights", "ignore_index", "contrastive", "a norm of the batch", "a root"],
)
def test_a_loss_that_depends_on_the_batch_is_refused(loss: Any) -> None:
    """pytorch#67253, transformers#34191: under a mean, each worker would divide by another number."""
    with pytest.raises(InputError, match="the loss depends on the batch") as error:
        probe(loss, SCORES, LABELS)
    assert "squall.Loss(sum, count=...)" in str(error.value)


def test_class_weights_are_seen_in_a_set_that_is_sorted_by_class() -> None:
    """An image folder is: its first samples are of one class, where a weighted mean is a mean."""
    data = sorted(make_data(60), key=lambda sample: sample[1])
    loss = partial(F.cross_entropy, weight=torch.tensor([1.0, 2.0, 5.0]))
    task = squall.Task(model=make_model, loss=loss, train=data)
    with pytest.raises(InputError, match="the loss depends on the batch"):
        squall.train(task, squall.Recipe(**FIELDS, lr=0.1))


def test_a_weighted_loss_with_its_own_sum_is_accepted() -> None:
    weighted = partial(F.cross_entropy, weight=torch.tensor([1.0, 2.0, 5.0]), reduction="sum")
    assert probe(weighted, SCORES, LABELS) == "sum"


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda out, y: 1.0, "the loss gives a float"),
        (lambda out, y: out.sum(0), r"the loss gives a tensor of shape \(3,\) for 11 samples"),
    ],
)
def test_what_is_no_loss_is_named(loss: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        probe(loss, SCORES, LABELS)


def test_nested_outputs_and_targets_are_probed() -> None:
    pair = namedtuple("pair", "logits extra")
    outputs, targets = pair(SCORES, {"box": [SCORES * 2]}), {"label": LABELS}
    assert probe(lambda out, y: F.cross_entropy(out.logits + out.extra["box"][0], y["label"]), outputs, targets) == (
        "mean"
    )


def test_the_probe_gives_the_loss_what_the_model_gives() -> None:
    """A dataclass of outputs, as transformers' models return: a dict in its place would have no attributes."""

    class Outputs(dict[str, torch.Tensor]):
        def __init__(self, *, logits: torch.Tensor) -> None:
            super().__init__(logits=logits)
            self.logits = logits

        def to_tuple(self) -> tuple[torch.Tensor, ...]:
            return tuple(self.values())

    assert probe(lambda out, y: F.cross_entropy(out.logits, y), Outputs(logits=SCORES), LABELS) == "mean"


def test_targets_that_are_ignored_later_are_refused_when_they_come() -> None:
    """The probe saw none of them: the mean's count would shrink silently."""
    data = make_data(32)
    data[1] = (data[1][0], -100)  # not among the sixteen that are probed
    task = squall.Task(model=make_model, loss=F.cross_entropy, train=data)
    with pytest.raises(InputError, match="a target is negative while the loss averages") as error:
        squall.train(task, squall.Recipe(**FIELDS, lr=0.1))
    assert "-100 in train[1]" in str(error.value)


def test_ignored_targets_of_an_evaluation_are_refused_too() -> None:
    data = make_data(7)
    data[5] = (data[5][0], -100)
    task = squall.Task(model=make_model, loss=F.cross_entropy, train=make_data(16), val=data)
    with pytest.raises(InputError, match="a target is negative while the loss averages") as error:
        squall.train(task, squall.Recipe(**FIELDS, lr=0.1))
    assert "-100 in val[5]" in str(error.value)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_ignored_targets_are_found_before_a_batch_goes_to_its_device(num_workers: int) -> None:
    """Whatever the device: a look at a batch on a GPU would wait for it. A meta tensor cannot be looked at at all."""
    data = make_data(8)
    draws = [Draw(np.arange(i, i + 4), np.zeros(4, dtype=np.int64)) for i in (0, 4)]
    reading = {"seed": 0, "device": torch.device("meta"), "num_workers": num_workers}
    looked = Inspected(None, refuse_ignored)
    assert len(list(read(data, draws, collate=looked, **reading))) == 2
    data[6] = (data[6][0], -100)
    batches = read(data, draws, collate=looked, **reading)
    assert next(batches)[1][1].device.type == "meta"
    with pytest.raises(InputError, match="a target is negative") as error:
        next(batches)
    assert "-100 in train[6]" in str(error.value)


@pytest.mark.parametrize(
    ("targets", "found"),
    [
        (torch.tensor([0, -1, 2]), "-1 in val[8]"),
        (torch.tensor([[0, 1], [1, 2], [1, -100]]), "-100 in val[9]"),
        (torch.tensor([-1.0, 0.0, 1.0]), ""),
        (torch.tensor([True, False, True]), ""),
        (torch.zeros(0, dtype=torch.int64), ""),
        ({"label": torch.tensor([-1])}, ""),
    ],
)
def test_which_targets_a_mean_ignores(targets: Any, found: str) -> None:
    draw = Draw(np.array([7, 8, 9]), np.zeros(3, dtype=np.int64))
    if not found:
        refuse_ignored((torch.zeros(3), targets), draw, "val")
        return
    with pytest.raises(InputError) as error:
        refuse_ignored((torch.zeros(3), targets), draw, "val")
    assert found in str(error.value)


def test_a_collate_of_ones_own_is_looked_after_too() -> None:
    data = make_data(32)
    data[1] = (data[1][0], -100)

    def pairs(samples: list[Any]) -> Any:
        return torch.stack([row for row, _ in samples]), torch.tensor([label for _, label in samples])

    task = squall.Task(model=make_model, loss=F.cross_entropy, train=data, collate=pairs)
    with pytest.raises(InputError, match="a target is negative"):
        squall.train(task, squall.Recipe(**FIELDS, lr=0.1))


def test_a_sum_may_ignore_targets() -> None:
    data = make_data(32)
    data[1] = (data[1][0], -100)
    loss = partial(F.cross_entropy, reduction="sum")
    assert squall.train(squall.Task(model=make_model, loss=loss, train=data), squall.Recipe(**FIELDS, lr=0.1))


# -- step= ---------------------------------------------------------------------------------------------------------


def train_step(step: Any, data: Any = None, **task: Any) -> squall.Result:
    given = squall.Task(model=make_model, step=step, train=data or make_data(), **task)
    return squall.train(given, squall.Recipe(**FIELDS, lr=0.1))


def test_a_step_that_returns_a_mean_is_refused() -> None:
    def step(model: nn.Module, batch: Any) -> Any:
        return squall.Loss(F.cross_entropy(model(batch[0]), batch[1]), count=len(batch[1]))

    with pytest.raises(InputError, match=r"step returns the mean over its batch as squall.Loss; it takes the sum"):
        train_step(step)


def test_a_count_that_does_not_add_up_is_refused() -> None:
    def step(model: nn.Module, batch: Any) -> Any:
        return squall.Loss(F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), count=4)

    with pytest.raises(InputError, match=r"the count of squall.Loss does not add up") as error:
        train_step(step)
    assert "4 for 16 samples, 4 and 4 for their two parts" in str(error.value)


@pytest.mark.parametrize("given", [lambda loss: loss, lambda loss: (loss, {}, 1), lambda loss: None])
def test_a_step_that_returns_something_else_is_refused(given: Any) -> None:
    def step(model: nn.Module, batch: Any) -> Any:
        return given(F.cross_entropy(model(batch[0]), batch[1], reduction="sum"))

    with pytest.raises(InputError, match=r"step returned a (Tensor|tuple|NoneType)"):
        train_step(step)


def test_an_exception_in_the_step_shows_the_users_line() -> None:
    def step(model: nn.Module, batch: Any) -> Any:
        raise KeyError("gooseneck")

    with pytest.raises(UserCodeError) as error:
        train_step(step)
    assert 'raise KeyError("gooseneck")' in str(error.value)


def test_a_task_needs_exactly_one_of_loss_and_step_and_a_factory() -> None:
    with pytest.raises(InputError, match="a task needs a loss or a step"):
        squall.Task(model=make_model, train=make_data())
    with pytest.raises(InputError, match="not both"):
        squall.Task(model=make_model, train=make_data(), loss=F.cross_entropy, step=lambda m, b: None)
    with pytest.raises(InputError, match="must be a function that makes the module"):
        squall.Task(model=make_model(), train=make_data(), loss=F.cross_entropy)  # type: ignore[arg-type]


# -- batches of every form, metrics ----------------------------------------------------------------------------------


def own_collate(samples: list[Any]) -> dict[str, torch.Tensor]:
    return {"x": torch.stack([row for row, _ in samples]), "y": torch.tensor([label for _, label in samples])}


def by_key(model: nn.Module, batch: Any) -> Any:
    scores = model(batch["x"])
    loss = F.cross_entropy(scores, batch["y"], reduction="sum")
    return squall.Loss(loss, count=len(scores)), {
        "accuracy": squall.mean(scores.argmax(1) == batch["y"]),
        "order": squall.gather(batch["x"][:, 0], lambda x: float((x * torch.arange(len(x))).sum())),
        "auc": squall.gather(scores, batch["y"], auroc),
    }


def test_dicts_tuples_and_an_own_collate_train_alike() -> None:
    rows = make_data(19)
    as_dicts = [{"x": row, "y": label} for row, label in rows]
    collated = train_step(by_key, rows, collate=own_collate)
    dicts = train_step(by_key, as_dicts)
    given = squall.Task(model=make_model, loss=LOSSES["sum"], train=rows)
    pairs = squall.train(given, squall.Recipe(**FIELDS, lr=0.1))
    assert collated.values["weights_sha256"] == dicts.values["weights_sha256"] == pairs.values["weights_sha256"]


def test_loss_refuses_batches_that_are_no_pairs() -> None:
    data = [{"x": row, "y": label} for row, label in make_data()]
    with pytest.raises(InputError, match=r"loss= needs batches of \(input, target\); got a dict"):
        squall.train(squall.Task(model=make_model, loss=F.cross_entropy, train=data), squall.Recipe(**FIELDS, lr=0.1))


def test_gathered_values_come_in_data_set_order_and_means_are_exact() -> None:
    """Seven batches of three and a ragged one: each sample counted once, in its place."""
    rows = make_data(23)
    models: list[nn.Module] = []

    def make() -> nn.Module:
        models.append(make_model())
        return models[-1]

    task = squall.Task(model=make, step=by_key, train=make_data(), val=rows, collate=own_collate)
    found = squall.train(task, squall.Recipe(**FIELDS, lr=0.1)).val
    inputs, labels = torch.stack([row for row, _ in rows]), torch.tensor([label for _, label in rows])
    assert found["order"] == float((inputs[:, 0] * torch.arange(23)).sum())
    with torch.no_grad():
        scores = torch.cat([models[-1](part) for part in inputs.split(3)])
    assert found["accuracy"] == int((scores.argmax(1) == labels).sum()) / 23
    assert found["auc"] == auroc(scores, labels)
    expected = F.cross_entropy(scores.double(), labels)
    assert found["loss"] == pytest.approx(float(expected), rel=1e-6)


def slow_auroc(scores: list[float], positive: list[bool]) -> float:
    """The textbook: the share of (positive, negative) pairs in the right order, ties count half."""
    pairs = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a, is_a in zip(scores, positive, strict=True)
        if is_a
        for b, is_b in zip(scores, positive, strict=True)
        if not is_b
    ]
    return sum(pairs) / len(pairs)


@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_the_share_of_ordered_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = torch.tensor(rng.integers(0, 6, 40).astype(np.float32))  # ties
    labels = torch.tensor(rng.integers(0, 2, 40))
    expected = slow_auroc(scores.tolist(), labels.bool().tolist())
    assert auroc(scores, labels) == pytest.approx(expected, abs=1e-12)
    two = torch.stack([torch.zeros(40), scores], dim=1)
    assert auroc(two, labels) == pytest.approx(expected, abs=1e-12)


def test_auroc_of_classes_is_the_mean_against_the_rest() -> None:
    each = [slow_auroc(SCORES[:, c].tolist(), LABELS.eq(c).tolist()) for c in range(CLASSES)]
    assert auroc(SCORES, LABELS) == pytest.approx(sum(each) / CLASSES, abs=1e-12)
    assert np.isnan(auroc(SCORES[:, 0], torch.zeros(11)))


@pytest.mark.parametrize("seed", range(5))
def test_f1_is_the_mean_over_classes_of_the_textbook(seed: int) -> None:
    rng = np.random.default_rng(seed)
    predicted, labels = rng.integers(0, 4, 30), rng.integers(0, 3, 30)  # one class is predicted but never true
    each = []
    for c in range(4):
        hits = sum(p == c and t == c for p, t in zip(predicted, labels, strict=True))
        precision = hits / max((predicted == c).sum(), 1)
        recall = hits / max((labels == c).sum(), 1)
        if (predicted == c).any() or (labels == c).any():
            each.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    assert f1(torch.tensor(predicted), torch.tensor(labels)) == pytest.approx(np.mean(each), abs=1e-12)
    logits = F.one_hot(torch.tensor(predicted), 4).float()
    assert f1(logits, torch.tensor(labels)) == pytest.approx(np.mean(each), abs=1e-12)


def test_gather_needs_tensors_and_a_function() -> None:
    with pytest.raises(TypeError, match=r"squall\.gather takes tensors and, last, a function"):
        squall.gather(SCORES, LABELS)
