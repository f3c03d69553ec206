"""Whether a set gives a sample otherwise in another epoch: whether it augments what it is asked for.

A set of one's own is a black box, but not a silent one: its random numbers come from generators that are seeded by
(seed, epoch, sample), so that a few samples read for several epochs show whether it draws any.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from squall.data.batches import Collate, read
from squall.data.nested import each_tensor
from squall.data.order import Draw

_SAMPLES, _EPOCHS = 16, 3


def augmented(data: Any, seed: int, collate: Collate | None = None, name: str = "train") -> int | None:
    """The first of a few samples, spread over the set, that differs between epochs; None where all are the same.

    Arguments:
        data: the set, of one sample or more.
        seed: the recipe's.
        collate: joins samples into a batch; torch's default otherwise.
        name: what errors call the set.
    """
    ids = np.unique(np.linspace(0, len(data) - 1, _SAMPLES).round().astype(np.int64))
    draws = [Draw(np.array([i]), np.array([epoch])) for i in ids for epoch in range(_EPOCHS)]
    first: list[torch.Tensor] = []
    for draw, batch in read(data, draws, seed=seed, device=torch.device("cpu"), collate=collate, name=name):
        found = _tensors(batch)
        if int(draw.epochs[0]) == 0:
            first = found
        elif len(found) != len(first) or not all(map(_alike, found, first)):
            return int(draw.ids[0])
    return None


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal, a missing value (NaN) equal to itself."""
    if torch.equal(a, b):
        return True
    return a.is_floating_point() and a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())


def _tensors(batch: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    each_tensor(note, batch)
    return found
