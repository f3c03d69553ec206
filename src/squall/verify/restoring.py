"""Puts the user's files back as they were before a trial, from the notes of `squall.verify.observe.journal`.

The last note is undone first, each as far as it can be: one that fails keeps no other from being tried, and its copy is
not thrown away. A note that is undone is marked at once, so that after a kill in the midst another process can go on:
undone twice, a note could take away what an earlier one has brought back. Where a note was written, folders led to its
place; if one of them is a link now, what lies beyond it is something else, and is not touched.
"""

from __future__ import annotations

import filecmp
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from squall.verify.observe.journal import ASIDE, DONE, JOURNAL, read


@dataclass(frozen=True)
class Restored:
    """What came of it.

    Attributes:
        changed: files that were put back or removed.
        stay: new files elsewhere, and new folders that hold what nobody was seen to write.
        refused: (path, bytes, why) of files that could not be put aside, and so were not touched.
        left: (path, why, where it lies now) of what could not be put back.
    """

    changed: tuple[str, ...] = ()
    stay: tuple[str, ...] = ()
    refused: tuple[tuple[str, int, str], ...] = ()
    left: tuple[tuple[str, str, str], ...] = ()


def restore(folder: Path) -> Restored:
    """Undoes what a trial's ranks did: contents come back, what is new goes or is named.

    Arguments:
        folder: the job's.
    """
    try:
        journal = os.open(_journal(folder), os.O_RDWR)
    except FileNotFoundError:
        return Restored()
    changed, stay, refused, left = [], [], {}, []
    try:
        for at, to_do, note in reversed(read(os.pread(journal, os.fstat(journal).st_size, 0))):
            path = Path(note["path"])
            if "refused" in note:
                refused[note["path"]] = (note["path"], note["size"], note["refused"])
                continue
            if not to_do:
                continue
            try:
                if _undo(note, path, folder / ASIDE):
                    changed.append(note["path"])
                elif note.get("was") == "nothing" and _is_told(note, path):
                    stay.append(note["path"])
            except Exception as error:  # all others are to be tried
                why = getattr(error, "strerror", None) or str(error)
                lies = note.get("moved") or (str(folder / ASIDE / note["copy"]) if "copy" in note else "")
                left.append((note["path"], why, lies))
                continue
            os.pwrite(journal, DONE, at)
    finally:
        os.close(journal)
    return Restored(tuple(changed), tuple(reversed(stay)), tuple(refused.values()), tuple(left))


def is_all_back(folder: Path) -> bool:
    """Whether nothing is left to be put back in a job's folder."""
    try:
        return not any(note.to_do and "refused" not in note.values for note in read(_journal(folder).read_bytes()))
    except FileNotFoundError:
        return True


def _journal(folder: Path) -> Path:
    return folder / ASIDE / JOURNAL


def _undo(note: dict[str, Any], path: Path, aside: Path) -> bool:
    """Makes one place what it was; says whether that changed a file."""
    if "moved" in note:
        return _move_back(note, path, Path(note["moved"]))
    match note["was"]:
        case "nothing":
            return note["new"] == "goes" and _remove(path)
        case "folder":
            _make_way(path)
            path.chmod(note["mode"])
            return False
        case "link":
            if _is_reached(path) and path.is_symlink() and os.readlink(path) == note["to"]:  # noqa: PTH115
                return False
            _make_way(path.parent)
            _clear(path)
            path.symlink_to(note["to"])
            return True
    return _put_back(aside / note["copy"], path, note)


def _is_told(note: dict[str, Any], path: Path) -> bool:
    """Whether the user should know of what has come and stays."""
    if not _is_reached(path):
        return False
    if note["new"] == "goes":
        return path.is_dir()  # it could not be removed: there is something in it
    return note["new"] == "stays" and path.is_file()


def _move_back(note: dict[str, Any], source: Path, target: Path) -> bool:
    arrived = _is_reached(target) and _is(target, note)
    if _is_reached(source) and os.path.lexists(source):
        if arrived:
            raise FileExistsError(0, "another folder has come into its place")
        return False  # it never went
    if _is_reached(target) and target.is_dir() and not target.is_symlink():
        _make_way(source.parent)
        target.rename(source)
        return True
    if not note["known"]:
        raise FileNotFoundError(0, f"it was renamed to {target} and is not there")
    return False  # it has a note of its own


def _is(path: Path, note: dict[str, Any]) -> bool:
    """Whether at a place lies what the note was about, not something that has come since."""
    try:
        there = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return bool([there.st_dev, there.st_ino] == note["id"])


def _remove(path: Path) -> bool:
    if not _is_reached(path):
        return False
    if path.is_symlink() or path.is_file():
        path.unlink()
        return True
    with suppress(OSError):  # what is in it was put there by others
        path.rmdir()
    return False


def _is_reached(path: Path) -> bool:
    """Whether only folders lead to it, as when the note was written."""
    return os.path.realpath(path.parent) == str(path.parent)


def _make_way(folder: Path) -> None:
    """Makes a folder, and those above it, where they were: what has come into their places is not the user's."""
    for each in (*reversed(folder.parents), folder):
        if each.is_symlink() or not each.is_dir():
            each.unlink(missing_ok=True)
            each.mkdir()


def _clear(path: Path) -> None:
    """Removes what has come into a place since; a folder that is not empty stays, and is an error."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def _put_back(copy: Path, path: Path, note: dict[str, Any]) -> bool:
    """A file's contents and times; its other names, where it has any, keep being names of the same file."""
    _make_way(path.parent)
    plain = path.is_file() and not path.is_symlink()
    if plain and filecmp.cmp(copy, path, shallow=False):
        shutil.copystat(copy, path)
        return False
    if plain:
        if path.stat().st_nlink > 1 and _is(path, note):
            shutil.copyfile(copy, path)
            shutil.copystat(copy, path)
            return True
    elif os.path.lexists(path):
        _clear(path)
    beside = path.with_name(f".squall-verify-{os.getpid()}")  # short: there is a limit
    try:
        shutil.copy2(copy, beside)
        with suppress(PermissionError):
            os.chown(beside, *note["owner"])
        beside.replace(path)  # whole or not at all; the copy may lie on another file system
    finally:
        beside.unlink(missing_ok=True)
    return True
