"""CIFAR-10 in its binary version: six files of 10,000 records, plain, .gz or .xz.

A record is 3,073 bytes: the label (0 to 9), then 1,024 bytes of red, of green and of blue, each plane row by row from
the top left. Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images". The python version
of the set is a pickle and is never read.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from squall.data import packed
from squall.data.catalogue import absent, damaged, remedy
from squall.errors import InputError
from squall.units import count

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_FILES = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}
_NUM = 10_000  # records in a file
_RECORD = 1 + 3 * 32 * 32
_SIZE = _NUM * _RECORD


def read(folder: Path, split: Literal["train", "test"]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Reads one split.

    Arguments:
        folder: holds the .bin files, or the archive's folder cifar-10-batches-bin that does.
        split: "train" (50,000 images) or "test" (10,000).

    Returns:
        Images, uint8 (N, 32, 32, 3), red first, and labels, int64 (N,), in the order of the files.

    Raises:
        InputError: a file is missing, cut short, corrupt or of another size, or a label is above 9.
    """
    paths = [path for part, path in _paths(folder) if part == split]
    images = np.empty((_NUM * len(paths), 32, 32, 3), dtype=np.uint8)
    labels = np.empty(_NUM * len(paths), dtype=np.int64)

    def fill(number: int) -> None:
        rows = slice(number * _NUM, (number + 1) * _NUM)
        records = _records(paths[number], folder)
        labels[rows] = records[:, 0]
        # (n, 3072) -> (n, 3, 32, 32) -> (n, 32, 32, 3)
        images[rows] = records[:, 1:].reshape(_NUM, 3, 32, 32).transpose(0, 2, 3, 1)

    # unpacking a file takes a second and lets go of the interpreter: one thread a core
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(fill, range(len(paths))))
    return images, labels


def check(folder: Path) -> None:
    """Looks at names, sizes and ends of the six files without unpacking whole ones; raises as `read`."""
    for _, path in _paths(folder):
        if not packed.has_whole_end(path, _SIZE):
            _records(path, folder)  # reads all, to say how much there is


def _paths(folder: Path) -> list[tuple[str, Path]]:
    inside = folder / "cifar-10-batches-bin"
    where = inside if inside.is_dir() else folder
    found = [(split, name, packed.find(where, name)) for split, names in _FILES.items() for name in names]
    missing = [name for _, name, path in found if path is None]
    if missing and any((folder / place).exists() for place in ("data_batch_1", "cifar-10-batches-py")):
        raise InputError(
            f"{folder} holds the python version of CIFAR-10",
            [("rule", "its files are pickles, which can run code: only the binary version is read"), remedy(folder)],
        )
    if missing:
        raise absent(folder, "CIFAR-10 has six files, plain, .gz or .xz", missing)
    return [(split, path) for split, _, path in found if path is not None]


def _records(path: Path, folder: Path) -> npt.NDArray[np.uint8]:
    """The records of one file, shape (10000, 3073), with labels that are classes."""
    got = packed.unpack(path, _SIZE)
    num_bytes = len(got.data)
    unpacked = " unpacked" if path.suffix in (".gz", ".xz") else ""
    found = (
        f"{count(num_bytes)} of {count(_SIZE)} bytes{unpacked}: {count(num_bytes // _RECORD)} of {count(_NUM)} images"
    )
    if got.state == "corrupt":
        raise damaged(path, "is corrupt", f"{found}, then: {got.detail}", folder)
    if got.state == "too long":
        found = f"more than {count(_SIZE)} bytes{unpacked}, {count(_NUM)} records of {count(_RECORD)}"
        raise damaged(path, "is no file of the binary version", found, folder)
    if num_bytes != _SIZE:
        raise damaged(path, "is cut short", found, folder)
    records = np.frombuffer(got.data, dtype=np.uint8).reshape(_NUM, _RECORD)
    wrong = np.flatnonzero(records[:, 0] >= len(CLASSES))
    if len(wrong):
        first = int(wrong[0])
        found = f"label {records[first, 0]} at image {count(first)}, {count(len(wrong))} in all; classes are 0 to 9"
        raise damaged(path, "holds labels that are no class", found, folder)
    return records
