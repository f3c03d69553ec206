"""A part of a set under its own numbering; samples keep the random streams of their numbers in the whole set.

A part speaks the forms of `squall.data.batches` that its set speaks, and no other: the `batch` of a Hugging Face set
means another thing, and its part is a plain one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from squall.data.batches import batch_of, finish_of, read_of
from squall.data.order import Draw
from squall.rng import Stream, mix, mix_array


class Subset:
    """Some samples of a map-style set, by index.

    Arguments:
        data: the whole set.
        ids: which samples, int64, in the order in which they are numbered here.
    """

    def __init__(self, data: Any, ids: npt.NDArray[np.int64]) -> None:
        self.data, self.ids = data, ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Any:
        return self.data[int(self.ids[index])]


class BatchSubset(Subset):
    """Some samples of a set that makes whole batches."""

    def batch(self, draw: Draw, seed: int, device: torch.device) -> Any:
        """The samples of a draw, as the whole set makes them."""
        whole = batch_of(self.data)
        assert whole is not None
        return whole(Draw(self.ids[draw.ids], draw.epochs), seed, device)


class ReadSubset(Subset):
    """Some samples of a set that reads them one by one with its own random numbers."""

    def read(self, index: int, epoch: int, seed: int) -> Any:
        """One sample, as the whole set reads it."""
        whole = read_of(self.data)
        assert whole is not None
        return whole(int(self.ids[index]), epoch, seed)


class FinishedSubset(ReadSubset):
    """Some samples of a set that reads them one by one and completes their batch on its device."""

    def finish(self, batch: Any, draw: Draw, seed: int) -> Any:
        """What the whole set does to a batch on its device."""
        whole = finish_of(self.data)
        assert whole is not None
        return whole(batch, Draw(self.ids[draw.ids], draw.epochs), seed)


def subset(data: Any, ids: npt.NDArray[np.int64]) -> Subset:
    """The part of `data` with these ids."""
    if batch_of(data) is not None:
        return BatchSubset(data, ids)
    if read_of(data) is not None:
        return (ReadSubset if finish_of(data) is None else FinishedSubset)(data, ids)
    return Subset(data, ids)


def hold_out(num_samples: int, num_held: int, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Cuts a set in two: (the rest, `num_held` samples chosen by a hash of (seed, id)), both in ascending order."""
    hashes = mix_array(mix(Stream.SPLIT, seed), np.arange(num_samples, dtype=np.uint64))
    chosen = np.argsort(hashes, kind="stable")
    return np.sort(chosen[num_held:]).astype(np.int64), np.sort(chosen[:num_held]).astype(np.int64)


def some_of(num_samples: int, wanted: int) -> npt.NDArray[np.int64]:
    """`wanted` ids chosen by a hash of the id, ascending: of all classes, also where a set is sorted by class.

    A smaller choice lies inside a larger one.
    """
    hashes = mix_array(mix(Stream.SPLIT), np.arange(num_samples, dtype=np.uint64))
    return np.sort(np.argsort(hashes, kind="stable")[:wanted]).astype(np.int64)
