"""A folder of images as a map-style data set: read, crop, resize, mirror one image at a time, in loader processes.

Decoding is what costs: `decode` does no more of it than the box that `fileops` found for this sample needs. Which
process decodes an image, and when, changes nothing. Grey images get three equal channels. Orientation tags are not
applied, as elsewhere in training on photographs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from squall.data.decode import UndecodableError, decode
from squall.data.fileops import DataOps, parse_ops
from squall.data.folder import FolderIndex
from squall.errors import InputError

__all__ = ["DataOps", "FolderIndex", "ImageFolder", "parse_ops"]


class ImageFolder:
    """Images of a folder, decoded when asked for.

    Example::

        index = sources.load("imagefolder", Path("sets/photos"), "train")
        train = ImageFolder(index, [{"random_resized_crop": 224}, {"horizontal_flip": 0.5}])
        image, label = train.read(17, epoch=3, seed=0)  # uint8 of shape (224, 224, 3), int

    Arguments:
        index: the files and their labels.
        ops: `random_resized_crop`, or `resize` and `center_crop`; then perhaps `horizontal_flip` (see `parse_ops`).
        on_error: a file that does not decode: "error" raises, "skip" gives None, which the reader counts.
        seed: used by indexing; `read` is told its own.
        where: what an error calls the operations, for example "data.train".
    """

    def __init__(
        self,
        index: FolderIndex,
        ops: Sequence[Mapping[str, Any]],
        on_error: Literal["error", "skip"] = "error",
        *,
        seed: int = 0,
        where: str = "the operations on images",
    ) -> None:
        if on_error not in ("error", "skip"):
            raise InputError(f"data.on_error={on_error} is not known", [("one of", "error skip")])
        self.index = index
        self.ops = parse_ops(ops, where=where)
        self.on_error = on_error
        self.seed = seed

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        return (*self.ops.size, 3)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.index.classes

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The labels of all samples, shape (N,)."""
        return self.index.labels

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], int] | None:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{index} is outside 0 .. {len(self) - 1}")
        return self.read(index % len(self), 0, self.seed)

    def read(self, index: int, epoch: int, seed: int) -> tuple[npt.NDArray[np.uint8], int] | None:
        """Decodes one sample as (seed, epoch, index) has it.

        Returns:
            The image, uint8 of shape (h, w, 3), and its label; None for a file that does not decode, under "skip".

        Raises:
            InputError: the file does not decode (under "error"); or it needs Pillow, which is not installed.
        """
        keys = (seed, epoch, index)
        path = self.index.path(index)
        try:
            image = decode(path, self.ops.size, lambda height, width: self.ops.box(height, width, keys))
        except UndecodableError as error:
            if self.on_error == "skip":
                return None
            raise InputError(
                f"{path.relative_to(self.index.root.parent)} does not decode",
                [
                    ("found", f"{error}      (in {self.index.root.parent})"),
                    (
                        "to do",
                        'put a whole copy in its place, delete it, or data.on_error="skip" to leave such files out',
                    ),
                ],
            ) from error
        if self.ops.flipped(keys):
            image = np.ascontiguousarray(image[:, ::-1])
        return image, int(self.index.labels[index])
