"""A part of a set speaks the richer forms that its set speaks, and no other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset
from torch.utils.data import Subset as TorchSubset

from squall.data.batches import batch_of, finish_of, read, read_of
from squall.data.order import Draw
from squall.data.subset import subset

IDS = np.array([9, 5, 2], dtype=np.int64)


class Plain(Dataset[int]):
    """The numbers 0 to 9."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> int:
        return index


class HuggingFaceLike(Plain):
    """`datasets.Dataset.batch` regroups the rows; its `read` and `finish`, had it any, would mean other things too."""

    def batch(self, batch_size: int, drop_last_batch: bool = False) -> Any:
        raise AssertionError("another method of the same name was called")

    def read(self, path: str) -> Any:
        raise AssertionError("another method of the same name was called")

    def finish(self) -> Any:
        raise AssertionError("another method of the same name was called")


class Reads(Plain):
    """Samples with their epoch; nothing is done to their batch."""

    def read(self, index: int, epoch: int, seed: int) -> int:
        return 100 * epoch + index


class Finishes(Reads):
    """Adds the samples' own numbers on the device."""

    def finish(self, batch: torch.Tensor, draw: Draw, seed: int) -> torch.Tensor:
        return batch + 1000 * torch.from_numpy(draw.ids)


class Batches(Plain):
    """Whole batches."""

    def batch(self, draw: Draw, seed: int, device: torch.device) -> torch.Tensor:
        return torch.from_numpy(100 * draw.epochs + draw.ids)


def forms(data: object) -> list[bool]:
    return [form(data) is not None for form in (batch_of, read_of, finish_of)]


@pytest.mark.parametrize(
    ("data", "speaks"),
    [
        (Plain(), [False, False, False]),
        (HuggingFaceLike(), [False, False, False]),
        (Reads(), [False, True, False]),
        (Finishes(), [False, True, True]),
        (Batches(), [True, False, False]),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("wrapped", [False, True], ids=["", "in torch's Subset"])
def test_a_part_speaks_what_its_set_speaks(data: Any, speaks: list[bool], wrapped: bool) -> None:
    whole = TorchSubset(data, range(10)) if wrapped else data
    assert forms(whole) == speaks
    assert forms(subset(whole, IDS)) == speaks
    assert hasattr(subset(whole, IDS), "finish") == speaks[2]


@pytest.mark.parametrize("data", [HuggingFaceLike(), Reads(), Batches(), TorchSubset(Batches(), range(10))])
def test_a_part_of_a_part_is_read_under_its_own_numbers(data: Any) -> None:
    part = subset(subset(data, IDS), np.array([2, 0], dtype=np.int64))
    draw = Draw(np.array([0, 1]), np.zeros(2, dtype=np.int64))
    [(_, batch)] = read(part, [draw], seed=0, device=torch.device("cpu"))
    assert batch.tolist() == [2, 9]


def test_a_part_finishes_with_the_whole_sets_numbers() -> None:
    part: Any = subset(TorchSubset(Finishes(), [9, 8, 7]), np.array([2, 0], dtype=np.int64))
    draw = Draw(np.array([0, 1]), np.ones(2, dtype=np.int64))
    assert part.finish(torch.zeros(2, dtype=torch.int64), draw, 0).tolist() == [7000, 9000]
