"""The sets that a recipe can name, and the two forms in which they arrive.

Small sets come whole, as one array of uint8 images (`ImageArrays`), which is held once per machine and augmented in
batches. A folder of photographs comes as an index of its files (`FolderIndex`), which loader processes decode one by
one. A reader knows its format and nothing of recipes; this module is the one place that joins names to readers.

============  =================================================  ==================================================
name          what                                               the folder holds
============  =================================================  ==================================================
digits        1,797 handwritten digits, inside the package       (no folder)
idx           MNIST, Fashion-MNIST and their kin                 four IDX files, plain, .gz or .xz
cifar10       CIFAR-10, binary version                           six .bin files, plain, .gz or .xz
imagefolder   photographs                                        train/<class>/*, and val/<class>/* or test/<class>/*
============  =================================================  ==================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from squall.data import cifar, digits, idx
from squall.data.folder import FolderIndex, check_folder, scan
from squall.errors import InputError, nearest

__all__ = ["NAMES", "FolderIndex", "ImageArrays", "check", "data_root", "load", "set_folder"]

NAMES = ("digits", "idx", "cifar10", "imagefolder")

Split = Literal["train", "test"]


@dataclass(frozen=True, eq=False)
class ImageArrays:
    """A set that is wholly in memory.

    Attributes:
        images: uint8, shape (N, H, W, C), C-contiguous.
        labels: int64, shape (N,), from 0 to len(classes) - 1.
        classes: the names of the classes.
        name: what the set is called.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    name: str

    def __len__(self) -> int:
        return len(self.labels)


def data_root(flag: Path | None, environment: str | None = None) -> Path:
    """The folder that holds the sets: the flag --data, else the value of SQUALL_DATA that is handed in, else ./data."""
    if flag is not None:
        return flag
    return Path(environment) if environment else Path("data")


def set_folder(data_folder: Path, root: str | None, name: str) -> Path | None:
    """The folder of one set: `root` of the recipe (or the set's name) under the data folder; None for the digits."""
    return None if name == "digits" else data_folder / (root or name)


def load(name: str, root: Path | None, split: Split) -> ImageArrays | FolderIndex:
    """Reads one split of a set.

    Arguments:
        name: one of `NAMES`.
        root: the set's own folder (see `set_folder`); not used by the digits.
        split: "train" or "test"; a folder of photographs has test/ or val/ for the latter.

    Raises:
        InputError: no such set; or the folder lacks it, or a file is cut short, corrupt or mislabelled: the error names
            the file and what repairs it.
    """
    if _known(name) == "digits":
        images, labels = digits.read(split)
        return ImageArrays(images, labels, digits.CLASSES, name)
    root = _given(name, root)
    if name == "imagefolder":
        return scan(root, split)
    if name == "cifar10":
        images, labels = cifar.read(root, split)
        return ImageArrays(images, labels, cifar.CLASSES, root.name)
    images, labels, classes = idx.read(root, split)
    return ImageArrays(images, labels, classes, root.name)


def check(name: str, root: Path | None) -> None:
    """Makes sure, without unpacking or decoding everything, that a set is there and its files are whole.

    Raises:
        InputError: as `load`, for what a look at names, headers, sizes and ends shows.
    """
    if _known(name) == "digits":
        return
    root = _given(name, root)
    {"idx": idx.check, "cifar10": cifar.check, "imagefolder": check_folder}[name](root)


def _known(name: str) -> str:
    if name not in NAMES:
        near = nearest(name, NAMES)
        raise InputError(
            f"no data set named {name}",
            [
                *([("near", " ".join(near))] if near else []),
                ("one of", f'{" ".join(NAMES)}, or "package.module:function"'),
            ],
        )
    return name


def _given(name: str, root: Path | None) -> Path:
    if root is None:
        raise InputError(f"data.name={name} needs a folder", [("to do", "set data.root, or --data DIR")])
    return root
