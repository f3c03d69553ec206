"""The IDX format of the MNIST family: four files, plain, .gz or .xz.

Images: big-endian int32 magic 2051, count, rows, columns, then count x rows x columns bytes, row by row (0 is
background). Labels: magic 2049, count, then count bytes. Source: LeCun, Cortes, Burges, "The MNIST database of
handwritten digits". Every promise of the headers is checked against the bytes that are there, and the two files against
each other.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from squall.data import packed
from squall.data.catalogue import absent, damaged
from squall.errors import InputError
from squall.units import count

Split = Literal["train", "test"]

_MAGIC = {"images": 2051, "labels": 2049}
_NAMES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}
_CLASSES = {
    "mnist": tuple("0123456789"),
    "fashion-mnist": (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
}  # fmt: skip
_LARGEST = 1 << 34  # bytes of images; a header that says more is not believed


def read(folder: Path, split: Split) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], tuple[str, ...]]:
    """Reads one split of a folder of IDX files.

    Arguments:
        folder: holds the files under their usual names; its own name tells MNIST and Fashion-MNIST from other sets.
        split: "train" or "test" (the files that begin with t10k).

    Returns:
        Images, uint8 (N, H, W, 1); labels, int64 (N,); the names of the classes. Of a set that is not known by name the
        classes are "0" to the largest training label.

    Raises:
        InputError: a file is missing, cut short, corrupt, holds something else, or a label has no class.
    """
    files = _files(folder)
    images = _read_one(files[split, "images"], "images")
    labels = _read_one(files[split, "labels"], "labels")
    if len(images) != len(labels):
        path = files[split, "labels"]
        raise damaged(
            path,
            "does not belong to its images",
            f"{count(len(labels))} labels for {count(len(images))} images in {files[split, 'images'].name}",
        )
    classes = _classes(files, folder, split, labels)
    wrong = np.flatnonzero(labels >= len(classes))
    if len(wrong):
        raise damaged(
            files[split, "labels"],
            "holds labels that are no class",
            f"label {labels[wrong[0]]} at image {count(int(wrong[0]))}, {count(len(wrong))} in all; "
            f"classes are 0 to {len(classes) - 1}",
        )
    return np.ascontiguousarray(images[..., None]), labels.astype(np.int64), classes


def check(folder: Path) -> None:
    """Looks at names, headers and ends of the four files without unpacking whole ones.

    Raises:
        InputError: as `read`, as far as that shows without reading all.
    """
    for (_, kind), path in _files(folder).items():
        start = packed.unpack(path, 16).data
        header = _header(bytes(start), kind)
        if header is None or not packed.has_whole_end(path, header[0] + header[1]):
            _read_one(path, kind)  # reads all, to say how much there is


def _files(folder: Path) -> dict[tuple[str, str], Path]:
    found = {key: packed.find(folder, name) for key, name in _NAMES.items()}
    missing = [f"{_NAMES[key]}.gz" for key, path in found.items() if path is None]
    if missing:
        raise absent(folder, "an IDX set has four files, plain or .gz", missing)
    return {key: path for key, path in found.items() if path is not None}


def _header(start: bytes, kind: str) -> tuple[int, int, tuple[int, ...]] | None:
    """(length of the header, bytes promised after it, shape), or None if these bytes begin no such file."""
    num_dims = 3 if kind == "images" else 1
    if len(start) < 4 + 4 * num_dims:
        return None
    magic, *shape = struct.unpack_from(f">{1 + num_dims}i", start)
    promised = int(np.prod(shape, dtype=np.float64)) if min(shape) > 0 else 0
    if magic != _MAGIC[kind] or not 0 < promised <= _LARGEST:
        return None
    return 4 + 4 * num_dims, promised, tuple(shape)


def _read_one(path: Path, kind: str) -> npt.NDArray[np.uint8]:
    """The array of one file, shape (N, H, W) or (N,)."""
    start = packed.unpack(path, 16)
    header = _header(bytes(start.data), kind)
    if header is None:
        raise _not_idx(path, kind, start)
    length, promised, shape = header
    whole = packed.unpack(path, length + promised)
    total = length + promised
    if whole.state == "whole" and len(whole.data) == total:
        return np.frombuffer(whole.data, dtype=np.uint8, offset=length).reshape(shape)
    num_whole = max(len(whole.data) - length, 0) // (promised // shape[0])
    unpacked = " unpacked" if path.suffix in (".gz", ".xz") else ""
    found = (
        f"{count(len(whole.data))} of {count(total)} bytes{unpacked}: {count(num_whole)} of {count(shape[0])} {kind}"
    )
    if whole.state == "corrupt":
        raise damaged(path, "is corrupt", f"{found}, then: {whole.detail}")
    if whole.state == "too long":
        raise damaged(path, "is longer than its header says", f"more than {count(total)} bytes{unpacked}")
    raise damaged(path, "is cut short", found)


def _not_idx(path: Path, kind: str, start: packed.Unpacked) -> InputError:
    if start.state == "corrupt":
        return damaged(path, "is corrupt", f"no readable start: {start.detail}")
    if len(start.data) < 4:
        return damaged(path, "is cut short", f"{len(start.data)} bytes, less than a header")
    (magic,) = struct.unpack_from(">i", start.data)
    for other, number in _MAGIC.items():
        if magic == number and other != kind:
            return damaged(path, f"holds {other}, not {kind}", f"magic number {magic}, {kind} have {_MAGIC[kind]}")
    if magic == _MAGIC[kind]:
        return damaged(path, "has a broken header", f"{bytes(start.data).hex(' ', 4)}: no sensible number and size")
    return damaged(path, f"is no IDX file of {kind}", f"magic number {magic}, {kind} have {_MAGIC[kind]}")


def _classes(
    files: dict[tuple[str, str], Path], folder: Path, split: Split, labels: npt.NDArray[np.uint8]
) -> tuple[str, ...]:
    if folder.name in _CLASSES:
        return _CLASSES[folder.name]
    train = labels if split == "train" else _read_one(files["train", "labels"], "labels")
    return tuple(str(number) for number in range(int(train.max()) + 1))
