"""A set of images in memory: uint8 as it came, augmented a whole batch at a time.

Holding the decoded set once (CIFAR-10: 184 MB) and transforming a minibatch of it in a few tensor operations makes
loader processes unnecessary. The pixels may be a read-only mapping shared by all processes of a machine
(`squall.data.shared`) or lie on the device; batches are always new tensors, so nobody can write into the set.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from squall.data.order import Draw
from squall.data.transform import Transform


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with labels, and what is done to them on the way to the network.

    Arguments:
        images: uint8, shape (N, H, W, C), contiguous.
        labels: int64, shape (N,), on the same device.
        transform: for images of that shape.
        classes: names of the labels.
        name: what messages call the set.
    """

    images: torch.Tensor
    labels: torch.Tensor
    transform: Transform
    classes: tuple[str, ...]
    name: str

    @staticmethod
    def of(
        images: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.int64],
        transform: Transform,
        classes: Sequence[str],
        name: str,
    ) -> ImageSet:
        """A set over NumPy arrays, without a copy (read-only arrays too: nothing here writes)."""
        return ImageSet(_view(images), _view(labels), transform, tuple(classes), name)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Input (C, h, w) and label of one sample, as drawn at seed 0 in epoch 0."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} images; there is no {index}")
        one = Draw(np.array([index % len(self)], dtype=np.int64), np.zeros(1, dtype=np.int64))
        inputs, targets = self.batch(one, 0, self.images.device)
        return inputs[0], int(targets[0])

    def batch(self, draw: Draw, seed: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The samples of a draw, augmented on `device`.

        Returns:
            Inputs, float32 (n, C, h, w), channels-last in memory; labels, int64 (n,). New tensors each time, the same
            bits whether the set lies on the device or elsewhere.
        """
        rows = torch.tensor(draw.ids, device=self.images.device)
        targets = self.labels.index_select(0, rows).to(device, non_blocking=True)
        if self.images.device == device:
            return self.transform.gather(self.images, draw.ids, draw.ids, draw.epochs, seed), targets
        picked = self.images.index_select(0, rows)
        if device.type == "cuda" and picked.device.type == "cpu":
            picked = picked.pin_memory()
        return self.transform(picked.to(device, non_blocking=True), draw.ids, draw.epochs, seed), targets


def _view(array: npt.NDArray[np.generic]) -> torch.Tensor:
    with warnings.catch_warnings():
        # torch warns that a read-only array could be written to through the tensor
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ", category=UserWarning)
        return torch.from_numpy(array)
