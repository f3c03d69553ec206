"""The index of a folder of images: which files there are and which class each is of.

The layout is the usual one: train/<class>/* beside val/<class>/* or test/<class>/*. Classes are numbered by the names
of the training folders in byte order, on every machine the same. Paths are one array of bytes, not a list of strings:
loader processes that touch a million Python objects copy their pages one by one through reference counts
(pytorch#13246).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from squall.data.catalogue import absent, remedy
from squall.errors import InputError, nearest
from squall.units import count

SUFFIXES = frozenset(b".jpg .jpeg .png .bmp .ppm .pgm .tif .tiff .webp".split())


@dataclass(frozen=True, eq=False)
class FolderIndex:
    """The images of one split, in order.

    Attributes:
        paths: paths below `root`, bytes, shape (N,); `path` gives one as a Path.
        labels: int64, shape (N,).
        classes: the names of the classes, in byte order.
        root: the folder of the set.
        name: what the set is called.
    """

    paths: npt.NDArray[np.bytes_]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    root: Path
    name: str

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> Path:
        """Where image `index` lies."""
        return self.root / os.fsdecode(bytes(self.paths[index]))


def scan(root: Path, split: Literal["train", "test"]) -> FolderIndex:
    """Lists the images of one split.

    Files below a class's folder count as images by their suffix (`SUFFIXES`); hidden files and folders do not.

    Arguments:
        root: the folder that holds train/ and val/ or test/.
        split: "test" takes test/ if it has classes, else val/.

    Raises:
        InputError: a folder is missing, a class has no image, or the test split has a class that training lacks.
    """
    train = _class_folders(root, "train")
    classes = tuple(os.fsdecode(name) for name in train)
    place, folders = "train", train
    if split == "test":
        place = next((place for place in ("test", "val") if _subfolders(root / place)), "val")
        folders = _class_folders(root, place)
        strangers = [os.fsdecode(name) for name in folders if name not in train]
        if strangers:
            near = nearest(strangers[0], classes)
            rows = [("found", f"{', '.join(strangers[:5])}      (in {root})")]
            rows += [("near", " ".join(near))] if near else []
            raise InputError(f"{root.name}/{place} has classes that train lacks", [*rows, remedy(root)])
    paths: list[bytes] = []
    labels: list[int] = []
    for name in folders:
        images = _images(os.fsencode(root / place / os.fsdecode(name)))
        if not images:
            where = f"{root.name}/{place}/{os.fsdecode(name)}"
            suffixes = " ".join(sorted(os.fsdecode(suffix) for suffix in SUFFIXES))
            raise InputError(f"{where} holds no images", [("needed", f"files that end in {suffixes}"), remedy(root)])
        paths += [b"/".join((os.fsencode(place), name, image)) for image in images]
        labels += [train.index(name)] * len(images)
    return FolderIndex(np.array(paths), np.array(labels, dtype=np.int64), classes, root, root.name)


def check_folder(root: Path) -> None:
    """Lists both splits and makes sure that no file is empty; raises as `scan`."""
    for split in ("train", "test"):
        index = scan(root, split)
        sizes = np.array([index.path(number).stat().st_size for number in range(len(index))])
        empty = np.flatnonzero(sizes == 0)
        if len(empty):
            shown = index.path(int(empty[0])).relative_to(root.parent)
            found = f"0 bytes, {count(len(empty))} such in {count(len(index))} files      (in {root.parent})"
            raise InputError(f"{shown} is empty", [("found", found), remedy(root, shown.name)])


def _class_folders(root: Path, place: str) -> list[bytes]:
    names = _subfolders(root / place)
    if not names:
        other = " (or test/)" if place == "val" else ""
        raise absent(root, "a folder of images is laid out by class", [f"{place}/<class>/*.jpg{other}"])
    return names


def _subfolders(folder: Path) -> list[bytes]:
    if not folder.is_dir():
        return []
    with os.scandir(os.fsencode(folder)) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(b"."))


def _images(folder: bytes) -> list[bytes]:
    """Paths of the images below a class's folder, relative to it, in byte order."""
    found = []
    for above, below, files in os.walk(folder, followlinks=True):
        below[:] = [name for name in below if not name.startswith(b".")]
        for name in files:
            if not name.startswith(b".") and os.path.splitext(name)[1].lower() in SUFFIXES:  # noqa: PTH122 - bytes
                found.append(os.path.relpath(os.path.join(above, name), folder))  # noqa: PTH118 - bytes
    return sorted(found)
