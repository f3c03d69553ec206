"""Whether a set augments shows in what it gives; what is held out of one that does validates nothing."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import squall
from squall.data.augmented import augmented
from squall.errors import InputError
from squall.recipe import load, override


class Rows:
    """Forty rows of numbers, each as `change` makes it."""

    def __init__(self, change: Any = None, num_samples: int = 40) -> None:
        self.change, self.num_samples = change, num_samples

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> Any:
        row = torch.arange(4.0) + index
        return (row if self.change is None else self.change(row)), index % 2


class OwnNumbers(Rows):
    """Speaks the richer form: draws its own numbers by epoch."""

    def read(self, index: int, epoch: int, seed: int) -> Any:
        return torch.tensor([index, epoch]), 0


@pytest.mark.parametrize(
    "data",
    [
        Rows(lambda row: row + torch.rand(())),
        Rows(lambda row: row.flip(0) if random.random() < 0.5 else row),
        Rows(lambda row: row * np.random.rand()),
        Rows(lambda row: row[: 1 + random.randrange(4)]),  # crops that differ in size
        OwnNumbers(),
        Rows(lambda row: torch.rand(4), num_samples=1),
    ],
    ids=["torch", "python", "numpy", "crops", "own", "one sample"],
)
def test_a_set_that_draws_random_numbers_augments(data: Any) -> None:
    assert augmented(data, seed=0) == 0


@pytest.mark.parametrize(
    "data", [Rows(), Rows(lambda row: row.flip(0)), Rows(num_samples=3), [(torch.ones(2), "words")] * 5]
)
def test_a_set_that_gives_the_same_again_does_not(data: Any) -> None:
    assert augmented(data, seed=0) is None


def test_the_first_sample_that_differs_is_named() -> None:
    data = Rows(lambda row: row + torch.rand(()) * (row[0] > 20))
    found = augmented(data, seed=0)
    assert found is not None
    assert found > 20


# -- data.val_samples ----------------------------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of a module of the user's, to be written."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "users_flowers.py"
    sys.modules.pop("users_flowers", None)


SETS = """
import torch

class Flowers:
    def __len__(self):
        return 40

    def __getitem__(self, index):
        return torch.full((4,), float(index)) + {}, index % 2

def sets():
    return Flowers(), None, None
"""


def trained(out: Path) -> squall.Result:
    recipe = squall.Recipe(
        epochs=1,
        global_batch_size=8,
        worker_batch_size=4,
        lr=0.01,
        model={"name": "mlp", "in_features": 4, "num_classes": 2},
        data={"name": "users_flowers:sets", "val_samples": 10},
    )
    return squall.train(None, recipe, out=out, sinks=())


def test_samples_held_out_of_an_augmented_set_are_refused(module: Path, tmp_path: Path) -> None:
    module.write_text(SETS.format("torch.rand(4)"))
    with pytest.raises(InputError, match=r"data.val_samples=10 would measure on augmented samples") as error:
        trained(tmp_path / "run")
    assert "of the training set is another one in each epoch" in str(error.value)
    assert "a validation set from users_flowers:sets: (train, val, test)" in str(error.value)
    assert not (tmp_path / "run").exists()


def test_samples_held_out_of_an_augmented_set_are_refused_by_replicas_too(module: Path, tmp_path: Path) -> None:
    module.write_text(SETS.format("torch.rand(4)"))
    recipe = squall.Recipe(
        epochs=1,
        strategy="downpour",
        worker_batch_size=4,
        lr=0.01,
        model={"name": "mlp", "in_features": 4, "num_classes": 2},
        data={"name": "users_flowers:sets", "val_samples": 10},
        downpour={"replicas": 2},
    )
    with pytest.raises(InputError, match=r"data.val_samples=10 would measure on augmented samples"):
        squall.train(None, recipe, out=tmp_path / "run", sinks=(), engine="simulated")
    assert not (tmp_path / "run").exists()


def test_samples_held_out_of_a_plain_set_validate(module: Path, tmp_path: Path) -> None:
    module.write_text(SETS.format("0"))
    assert 0 <= trained(tmp_path / "run").val["accuracy"] <= 1


def test_missing_values_are_no_augmentation() -> None:
    row = torch.tensor([1.0, float("nan")])
    assert augmented([(row, 0)] * 4, seed=0) is None


def test_the_best_by_a_set_that_is_not_there_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    recipe = override(load("digits"), ["epochs=1", "checkpoint.keep_best=val/accuracy"])
    with pytest.raises(InputError, match=r"keep_best=val/accuracy without a validation set") as error:
        squall.train(None, recipe, out=tmp_path / "run", sinks=())
    assert "data.val_samples=N" in str(error.value)
    assert not (tmp_path / "run").exists()
