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


def newest(folder: Path, *, only: int | None = None) -> Checkpoint | None:
    """The newest whole checkpoint; one that is torn or changed is passed over.

    Arguments:
        folder: a run's checkpoints.
        only: look at the checkpoint of this step alone.

    Raises:
        InputError: a whole one that a newer Squall wrote in a form unknown here.
    """
    passed_over: list[tuple[str, str]] = []
    for step in steps_of(folder):
        if only is not None and step != only:
            continue
        path = folder / name_of(step)
        try:
            body = manifest.read((path / manifest.FILE).read_bytes())
            _check_format(path, body)
            _check_files(path, body)
        except (OSError, manifest.BrokenManifestError) as error:
            why = "it has no manifest" if isinstance(error, FileNotFoundError) else f"{error}"
            passed_over.append((path.name, why))
            continue
        return Checkpoint(path, body, tuple(passed_over))
    return None


def sweep(folder: Path) -> None:
    """Takes away what sessions that died left half written; for the one that holds the run's lock."""
    if folder.is_dir():
        for path in folder.glob(".*"):
            with suppress(OSError):
                shutil.rmtree(path)


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
