"""Puts the user's files back as they were before a trial: see `squall.verify.observe.keeping`."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

from squall.verify.observe.keeping import KEPT


def restore(folder: Path) -> list[str]:
    """Undoes what a trial's ranks did to files: contents come back, new files and folders go.

    A folder that was made and holds something that is not ours to remove stays.

    Arguments:
        folder: the job's.

    Returns:
        The files that were put back or removed.
    """
    notes = []
    for path in (folder / KEPT).glob("*.json"):
        with path.open(encoding="utf-8") as file:
            notes.append((json.load(file), path.with_suffix(".copy")))
    changed = []
    for note, copy in sorted(notes, key=lambda one: -one[0]["order"]):  # what came last goes first
        path = Path(note["path"])
        if note["was"] == "file":
            if _same(path, copy):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(copy, path)
            changed.append(str(path))
        elif note["folder"]:
            with suppress(OSError):
                path.rmdir()
        elif path.is_file() or path.is_symlink():
            path.unlink()
            changed.append(str(path))
    return changed


def _same(path: Path, copy: Path) -> bool:
    try:
        one, other = path.stat(), copy.stat()
    except FileNotFoundError:
        return False
    return (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)


def _replace(copy: Path, path: Path) -> None:
    """The copy in the file's place, whole or not at all; from another file system too."""
    beside = path.with_name(f".{path.name}.squall-verify-{os.getpid()}")
    shutil.copy2(copy, beside)
    beside.replace(path)
