"""Which public sets Squall can fetch, what their files must be, and how a damaged one is reported.

A set is a folder `<data folder>/<name>`. Sizes and SHA-256 sums are those of the files that the authors publish.
References: LeCun, Cortes, Burges, "The MNIST database"; Xiao, Rasul, Vollgraf 2017, "Fashion-MNIST"; Krizhevsky 2009,
"Learning Multiple Layers of Features from Tiny Images" (the binary version; the other one is a pickle).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from squall.errors import InputError, Row, nearest
from squall.units import count, megabytes


@dataclass(frozen=True)
class RemoteFile:
    """One published file: its name, its size in bytes and its SHA-256 sum."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class PublicSet:
    """A public data set.

    Attributes:
        name: the name of the set and of its folder.
        about: one line for people.
        licence: what its authors say about use.
        reader: which reader takes the folder.
        base_url: where the files lie; it ends in a slash.
        files: what is downloaded.
        members: for an archive: the files to take out of it, with their own sums; the archive is not kept.
    """

    name: str
    about: str
    licence: str
    reader: Literal["idx", "cifar10"]
    base_url: str
    files: tuple[RemoteFile, ...]
    members: Mapping[str, str] = field(default_factory=dict)

    @property
    def download_bytes(self) -> int:
        """The size of all that is downloaded."""
        return sum(file.size for file in self.files)


def _idx(*rows: tuple[str, int, str]) -> tuple[RemoteFile, ...]:
    return tuple(RemoteFile(f"{stem}-ubyte.gz", size, sha256) for stem, size, sha256 in rows)


CATALOGUE: Mapping[str, PublicSet] = MappingProxyType(
    {
        "cifar10": PublicSet(
            name="cifar10",
            about="60,000 colour photographs of 32x32, 10 classes",
            licence="none declared; for research, with a citation of Krizhevsky 2009",
            reader="cifar10",
            base_url="https://www.cs.toronto.edu/~kriz/",
            files=(
                RemoteFile(
                    "cifar-10-binary.tar.gz",
                    170_052_171,
                    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                ),
            ),
            members=MappingProxyType(
                {
                    "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
                    "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
                    "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
                    "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
                    "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
                    "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
                }
            ),
        ),
        "fashion-mnist": PublicSet(
            name="fashion-mnist",
            about="70,000 grey images of clothes of 28x28, 10 classes",
            licence="MIT (Zalando)",
            reader="idx",
            base_url="https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
            files=_idx(
                ("train-images-idx3", 26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
                ("train-labels-idx1", 29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
                ("t10k-images-idx3", 4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
                ("t10k-labels-idx1", 5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
            ),
        ),
        "mnist": PublicSet(
            name="mnist",
            about="70,000 grey images of handwritten digits of 28x28, 10 classes",
            licence="CC BY-SA 3.0 (LeCun, Cortes)",
            reader="idx",
            base_url="https://ossci-datasets.s3.amazonaws.com/mnist/",
            files=_idx(
                ("train-images-idx3", 9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
                ("train-labels-idx1", 28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
                ("t10k-images-idx3", 1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
                ("t10k-labels-idx1", 4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
            ),
        ),
    }
)


def find(name: str) -> PublicSet:
    """The public set of that name; an `InputError` with the valid names if there is none."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    near = nearest(name, list(CATALOGUE))
    rows: list[Row] = [("near", " ".join(near))] if near else []
    raise InputError(f"no public set named {name}", [*rows, ("one of", " ".join(CATALOGUE))], "squall data list")


def remedy(folder: Path, file: str = "") -> Row:
    """The row that says what repairs a set: a fetch for a public one, else another copy of the file."""
    public = CATALOGUE.get(folder.name)
    if public:
        command = f"squall data fetch {public.name} --data {folder.parent}"
        return ("to do", f"{command}      {megabytes(public.download_bytes)}, sha256 checked")
    return ("to do", f"put a whole copy of {file or 'the set'} into {folder}")


def damaged(path: Path, what: str, found: str, folder: Path | None = None) -> InputError:
    """The error for one damaged file of a set.

    Arguments:
        path: the file.
        what: what is wrong with it: "is cut short".
        found: the numbers that show it.
        folder: the set's folder; the file's own if not given.
    """
    folder = folder or path.parent
    shown = path.relative_to(folder.parent)
    rows = [("found", f"{found}      (in {folder.parent})"), remedy(folder, path.name)]
    return InputError(f"{shown} {what}", rows)


def absent(folder: Path, what: str, files: list[str]) -> InputError:
    """The error for a folder that is missing or lacks files of a set: what is needed, and what is there instead."""
    if not folder.is_dir():
        return InputError(f"there is no folder {folder}", [("needed", f"{what}: {', '.join(files)}"), remedy(folder)])
    there = sorted(entry.name for entry in folder.iterdir())
    listed = ", ".join(there[:6]) + (f" and {count(len(there) - 6)} more" if len(there) > 6 else "")
    rows = [("missing", ", ".join(files)), ("found", f"{listed or 'nothing'}      (in {folder})"), remedy(folder)]
    return InputError(f"{folder.name} is not whole: {what}", rows)
