"""A folder of photographs as a training set: decoded by loader processes, finished a whole batch at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from squall.data.augment import compile_ops, split_ops
from squall.data.folder import FolderIndex
from squall.data.imagefolder import ImageFolder
from squall.data.order import Draw


class Photos:
    """Images of a folder, cropped while decoding (uint8), normalised as a batch on the device.

    Arguments:
        index: the files and their labels.
        ops: all operations of the recipe's list: first those done while decoding, then those on the batch.
        on_error: what to do with a file that does not decode.
        where: what an error calls the operations.
    """

    def __init__(
        self, index: FolderIndex, ops: Sequence[Mapping[str, Any]], on_error: Literal["error", "skip"], where: str
    ) -> None:
        first, rest = split_ops(ops)
        self.folder = ImageFolder(index, first, on_error, where=where)
        self.transform = compile_ops(rest, self.folder.shape, where=where)
        self.classes = index.classes

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], int] | None:
        return self.folder[index]

    def read(self, index: int, epoch: int, seed: int) -> tuple[npt.NDArray[np.uint8], int] | None:
        """One decoded sample."""
        return self.folder.read(index, epoch, seed)

    def finish(
        self, batch: tuple[torch.Tensor, torch.Tensor], draw: Draw, seed: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 (n, h, w, 3) to float32 (n, 3, h, w), with the operations on batches."""
        images, labels = batch
        return self.transform(images, draw.ids, draw.epochs, seed), labels
