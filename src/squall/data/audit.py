"""Reads every file of a set, to know before a long run what it holds.

What is looked for: files that do not unpack or decode (by the set's own reader), sums that are not the published ones,
how many images each class has, and images that occur twice, byte for byte, within a split or in both: the latter are
test images that were trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from squall.data import packed
from squall.data.catalogue import CATALOGUE, PublicSet
from squall.data.decode import Box, UndecodableError, decode
from squall.data.sources import NAMES, FolderIndex, ImageArrays, load
from squall.errors import InputError, nearest
from squall.units import count

_SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")
_SHOWN = 5
_ANY_MORE = 1 << 40


@dataclass(frozen=True)
class Audit:
    """What a set holds.

    Attributes:
        name: the set.
        classes: the names of the classes.
        per_class: for each split, the number of images of each class.
        repeated: for each split, pairs (first, again) of sample numbers whose images are equal byte for byte.
        shared: pairs (training sample, test sample) whose images are equal.
        faults: files that do not decode or have another sum than the published one, each with a reason.
        sums_checked: how many files were compared with published SHA-256 sums.
    """

    name: str
    classes: tuple[str, ...]
    per_class: dict[str, tuple[int, ...]]
    repeated: dict[str, list[tuple[int, int]]]
    shared: list[tuple[int, int]]
    faults: list[tuple[str, str]] = field(default_factory=list)
    sums_checked: int = 0

    @property
    def ok(self) -> bool:
        """Whether every file is readable and what was published; repeated images are remarks, not faults."""
        return not self.faults

    def text(self) -> str:
        """For people: counts, then what was found."""
        sizes = " + ".join(f"{count(sum(counts))} {split}" for split, counts in self.per_class.items())
        lines = [f"{self.name}: {sizes} images, {len(self.classes)} classes"]
        for split, counts in self.per_class.items():
            least = "" if min(counts) == max(counts) else f"{count(min(counts))} to "
            lines.append(f"  {split.ljust(8)}  {least}{count(max(counts))} images a class")
        for split, pairs in self.repeated.items():
            lines.append(f"  {split.ljust(8)}  {_pairs(pairs)} equal an earlier one")
        lines.append(f"  {'both'.ljust(8)}  {_pairs(self.shared)} stand in train and in test")
        if self.sums_checked:
            lines.append(f"  {'sha256'.ljust(8)}  {self.sums_checked} files compared with the published sums")
        lines += [f"  {'FAULT'.ljust(8)}  {name}: {reason}" for name, reason in self.faults]
        lines.append("ok" if self.ok else f"{count(len(self.faults))} faults")
        return "\n".join(lines)


def check(name: str, folder: Path | None = None, progress: Callable[[str, int, int], None] | None = None) -> Audit:
    """Reads, unpacks, counts, decodes and compares every file of a set.

    Arguments:
        name: a public set (`CATALOGUE`) or a reader (`sources.NAMES`).
        folder: the set's own folder; the digits need none.
        progress: is told (split, images done, images in all).

    Raises:
        InputError: no such set, or a file without which the rest cannot be read is missing or damaged.
    """
    public = CATALOGUE.get(name) or (CATALOGUE.get(folder.name) if folder and name in ("idx", "cifar10") else None)
    reader = public.reader if public else name
    if reader not in NAMES:
        valid = [*CATALOGUE, *(other for other in NAMES if other not in CATALOGUE)]
        near = nearest(name, valid)
        rows = [("near", " ".join(near))] if near else []
        raise InputError(f"no data set named {name}", [*rows, ("one of", " ".join(valid))])
    faults: list[tuple[str, str]] = []
    digests: dict[str, list[bytes]] = {}
    per_class: dict[str, tuple[int, ...]] = {}
    classes: tuple[str, ...] = ()
    for split in _SPLITS:
        data = load(reader, folder, split)
        classes = data.classes
        per_class[split] = tuple(int(number) for number in np.bincount(data.labels, minlength=len(classes)))
        digests[split] = []
        for number, digest in enumerate(_digests(data, faults), 1):
            digests[split].append(digest)
            if progress and (number % 500 == 0 or number == len(data)):
                progress(split, number, len(data))
    num_sums = _compare_sums(public, folder, faults) if public and folder else 0
    first = {split: _first_places(digests[split]) for split in _SPLITS}
    repeated: dict[str, list[tuple[int, int]]] = {
        split: [(first[split][d], n) for n, d in enumerate(digests[split]) if first[split][d] != n] for split in _SPLITS
    }
    shared = [(first["train"][d], n) for n, d in enumerate(digests["test"]) if d in first["train"]]
    return Audit(name, classes, per_class, repeated, shared, faults, num_sums)


def _digests(data: ImageArrays | FolderIndex, faults: list[tuple[str, str]]) -> Iterator[bytes]:
    """A digest of each image: of its pixels if it lies in an array, else of its file, which is decoded as a trial."""
    if isinstance(data, ImageArrays):
        for image in data.images:
            yield hashlib.blake2b(image.tobytes(), digest_size=16).digest()
        return
    for number in range(len(data)):
        path = data.path(number)
        try:
            decode(path, (8, 8), lambda height, width: Box(0, 0, height, width))  # small: all is read anyway
        except UndecodableError as error:
            faults.append((str(path.relative_to(data.root)), f"does not decode: {error}"))
        content = path.read_bytes() if path.is_file() else b""
        yield hashlib.blake2b(content, digest_size=16).digest()


def _first_places(digests: list[bytes]) -> dict[bytes, int]:
    first: dict[bytes, int] = {}
    for number, digest in enumerate(digests):
        first.setdefault(digest, number)
    return first


def _compare_sums(public: PublicSet, folder: Path, faults: list[tuple[str, str]]) -> int:
    """Compares files with the published sums; packed members by what is inside. Returns how many."""
    compared = 0
    where = folder / "cifar-10-batches-bin"
    where = where if where.is_dir() else folder
    published = public.members or {file.name: file.sha256 for file in public.files}
    for name, sha256 in published.items():
        path = packed.find(where, name)
        if path is None:
            continue  # unpacked by hand: the reader has seen it, the published sum is of the packed file
        content = packed.unpack(path, _ANY_MORE).data if public.members else path.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        compared += 1
        if found != sha256:
            faults.append((path.name, f"sha256 {found}, published {sha256}"))
    return compared


def _pairs(pairs: list[tuple[int, int]]) -> str:
    shown = ", ".join(f"{b} = {a}" for a, b in pairs[:_SHOWN])
    more = ", ..." if len(pairs) > _SHOWN else ""
    return f"{count(len(pairs))} images{f' ({shown}{more})' if pairs else ''}"
