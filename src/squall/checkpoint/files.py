"""Checkpoints in a run's folder: their names, which of them are whole, and reading one.

checkpoints/step-00000120/    manifest.json  rank-0.safetensors  rank-1.safetensors
checkpoints/.step-...         being written, or left by somebody who died
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from squall.checkpoint import manifest
from squall.errors import InputError

if TYPE_CHECKING:
    import torch

    from squall.checkpoint.layout import Entry

_NAME = re.compile(r"step-(\d{8,})")
_CHUNK = 4 << 20


def name_of(step: int) -> str:
    """The folder's name of the checkpoint after `step` updates."""
    return f"step-{step:08}"


def steps_of(folder: Path) -> list[int]:
    """Updates of the checkpoints in a folder, whole or not, the newest first."""
    if not folder.is_dir():
        return []
    found = [_NAME.fullmatch(path.name) for path in folder.iterdir() if path.is_dir()]
    return sorted((int(match[1]) for match in found if match), reverse=True)


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint.

    Attributes:
        path: its folder.
        body: of its manifest.
        passed_over: newer ones that are not whole, and why, as (name, reason).
    """

    path: Path
    body: dict[str, Any]
    passed_over: tuple[tuple[str, str], ...] = ()

    @property
    def entries(self) -> list[Entry]:
        """Its tensors' places."""
        from squall.checkpoint.layout import Entry

        return [Entry.of_json(values) for values in self.body["tensors"]]

    def vectors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Each dtype's vector, on the CPU."""
        import torch
        from safetensors import safe_open

        from squall.checkpoint.layout import DTYPES, lengths

        for dtype, length in lengths(self.entries).items():
            vector = torch.zeros(length, dtype=DTYPES[dtype])
            for file in self.body["files"]:
                start, stop = self.body["slices"][file["name"]].get(dtype, (0, 0))
                if stop > start:
                    with safe_open(self.path / file["name"], framework="pt") as opened:
                        vector[start:stop] = opened.get_tensor(dtype)
            yield dtype, vector


def newest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a run; one that is torn or changed is passed over. None where there is none.

    Raises:
        InputError: there are some and none is whole; a whole one that a newer Squall wrote in a form unknown here.
        OSError: they cannot be read.
    """
    passed_over: list[tuple[str, str]] = []
    for step in steps_of(folder):
        path = folder / name_of(step)
        try:
            body = manifest.read((path / manifest.FILE).read_bytes())
            _check_format(path, body)
            _check_files(path, body)
        except FileNotFoundError as error:
            passed_over.append((path.name, f"it has no {Path(error.filename).name}"))
            continue
        except manifest.BrokenManifestError as error:
            passed_over.append((path.name, str(error)))
            continue
        return Checkpoint(path, body, tuple(passed_over))
    if passed_over:
        raise InputError(
            f"no checkpoint in {folder} is whole",
            [*passed_over, ("to do", f"bring one back from a copy; or remove {folder.parent} and begin anew")],
        )
    return None


def set_aside(folder: Path, after: int) -> None:
    """Renames checkpoints of later steps, which were passed over: their names are about to be used again."""
    for step in steps_of(folder):
        if step > after:
            aside = folder / f"torn-{name_of(step)}"
            shutil.rmtree(aside, ignore_errors=True)
            (folder / name_of(step)).rename(aside)


def sweep(folder: Path) -> None:
    """Takes away what sessions that died left half written; for the one that holds the run's lock."""
    if folder.is_dir():
        for path in folder.glob(".*"):
            shutil.rmtree(path, ignore_errors=True)
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _check_format(path: Path, body: dict[str, Any]) -> None:
    if body["format"] > manifest.FORMAT:
        raise InputError(
            f"the checkpoint {path} was written by a newer Squall",
            [
                ("found", f"format {body['format']}, of Squall {body.get('squall', 'unknown')}"),
                ("rule", f"this Squall reads formats up to {manifest.FORMAT}"),
                ("to do", "resume with that version, or a later one"),
            ],
        )


def _check_files(path: Path, body: dict[str, Any]) -> None:
    for file in body["files"]:
        digest = hashlib.sha256()
        with (path / file["name"]).open("rb") as opened:
            while chunk := opened.read(_CHUNK):
                digest.update(chunk)
        if digest.hexdigest() != file["sha256"]:
            size = (path / file["name"]).stat().st_size
            cut = f"{size:,} of {file['bytes']:,} bytes" if size != file["bytes"] else "another sha256"
            raise manifest.BrokenManifestError(f"{file['name']} has {cut}")
