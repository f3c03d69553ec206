"""What was there before a trial's ranks changed it: notes from which all can be undone, last one first.

    aside/journal.jsonl    one note a line, written before what it is about is done
    aside/4711             a copy of a file; its note begins at that byte of the journal

A note says what a place held when it was first touched: a file, a link, a folder, nothing. A folder that is renamed
takes what is in it along, so that has a note of its own, and what was known of its files is known of them in the new
place, if it came there. All ranks and their loaders share one journal, and a lock lets one of them look, copy and write
at a time: whoever finds a place known finds its copy whole, and the lock of a process that is killed is free.

A line begins with " " as long as it is to be undone, then with "#" (`squall.verify.restoring`).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from squall.units import megabytes

ASIDE = "aside"
"""Folder in the job's folder: the journal, and the copies."""

JOURNAL = "journal.jsonl"
TO_DO, DONE = b" ", b"#"

New = Literal["goes", "stays", "unsaid"]
"""What becomes of a new file after the trial: it is removed; it stays, and is told; it stays."""

_SPARE = 64 << 20  # bytes that a copy leaves free: for traces, logs and notes


class NotKeptError(Exception):
    """A file cannot be put aside, so it must not be changed: the call that was about to do it is stopped."""


class Noted(NamedTuple):
    """A line of the journal: the byte at which it begins, whether it is still to be undone, and its values."""

    at: int
    to_do: bool
    values: dict[str, Any]


class Moved(NamedTuple):
    """A folder that was renamed: to where, its device and inode, and the places in it that are known."""

    target: str
    identity: list[int]
    known: set[str]


def read(data: bytes, at: int = 0) -> list[Noted]:
    """The whole lines; what a writer that was killed has left of one is none.

    Arguments:
        at: the byte of the journal at which the data begin.
    """
    found = []
    for line in data.splitlines(keepends=True):
        if line.endswith(b"\n"):
            found.append(Noted(at, line.startswith(TO_DO), json.loads(line[1:])))
        at += len(line)
    return found


class Journal:
    """One process's hold of it.

    Arguments:
        folder: the job's.
        here: the folder in which the script runs.
    """

    def __init__(self, folder: Path, here: str) -> None:
        self.folder = folder / ASIDE
        self._here = here
        self.folder.mkdir(exist_ok=True)
        self._path = self.folder / JOURNAL
        self._path.touch()
        self._known: set[str] = set()
        self._moved: list[Moved] = []
        self._read = 0  # bytes of the journal that these are made of

    def keep(self, path: str, *, new: New, folder: bool = False) -> None:
        """Notes what a place holds; what is known costs a look at the journal's length.

        Arguments:
            path: absolute, of no links but for the last part.
            new: what is to become of a file that comes where there is none.
            folder: whether a folder there is about to go; else folders need no note.

        Raises:
            NotKeptError: it could not be put aside.
        """
        if self._is_known(path) and self._is_up_to_date():
            return
        with self._refusing(path), self._locked():
            if not self._is_known(path):
                self._note(path, new, folder)

    def move(self, source: str, target: str, *, new: New) -> None:
        """Notes that a folder is about to be renamed, if that is possible.

        Raises:
            NotKeptError: as `keep`.
        """
        if is_in(target, source):  # nor is this
            return
        try:
            there, above = os.lstat(source), os.stat(os.path.dirname(target))  # noqa: PTH116, PTH120
            if not stat.S_ISDIR(above.st_mode) or there.st_dev != above.st_dev:
                return
            if os.path.lexists(target) and os.listdir(target):  # noqa: PTH208
                return
        except OSError:  # so will be the script's own call
            return
        if os.path.lexists(target):  # an empty folder gives way
            self.keep(target, new=new, folder=True)
        with self._refusing(source), self._locked():
            values = {"id": [there.st_dev, there.st_ino], "known": self._is_known(source)}
            self._write({"path": source, "moved": target, **values})

    def _is_known(self, path: str) -> bool:
        return path in self._known or any(path in moved.known and _is_at(moved) for moved in self._moved)

    def _is_up_to_date(self) -> bool:
        try:
            return self._path.stat().st_size == self._read
        except OSError:
            return False

    def _note(self, path: str, new: New, folder: bool) -> None:
        try:
            there = os.lstat(path)
        except FileNotFoundError:
            above = os.path.dirname(path)  # noqa: PTH120
            if not (os.path.lexists(above) or self._is_known(above)):
                self._note(above, new, folder=False)  # first, so that it goes last
            self._write({"path": path, "was": "nothing", "new": new})
            return
        except OSError:  # so will be the script's own call
            return
        if stat.S_ISREG(there.st_mode):
            try:
                copy = self._copy(path, there.st_size)
            except FileNotFoundError:
                if os.path.lexists(path):
                    raise
                self._note(path, new, folder)  # it has gone just now, with a folder that another rank has renamed
                return
            values = {"copy": copy, "id": [there.st_dev, there.st_ino], "owner": [there.st_uid, there.st_gid]}
            for name in (path, *self._other_names(path, there)):
                self._write({"path": name, "was": "file", **values})
        elif stat.S_ISLNK(there.st_mode):
            self._write({"path": path, "was": "link", "to": os.readlink(path)})  # noqa: PTH115
        elif stat.S_ISDIR(there.st_mode) and folder:
            self._write({"path": path, "was": "folder", "mode": stat.S_IMODE(there.st_mode)})

    def _copy(self, path: str, size: int) -> str:
        name = str(self._read)
        free = shutil.disk_usage(self.folder).free
        if size > free - _SPARE:
            raise OSError(0, f"only {megabytes(free)} are free in {self.folder.parent.parent}")
        try:
            shutil.copy2(path, self.folder / name)
        except OSError:
            (self.folder / name).unlink(missing_ok=True)  # the room is needed
            raise
        return name

    def _other_names(self, path: str, there: os.stat_result) -> Iterator[str]:
        """The other names of the same file near by: who changes it changes what is found under these."""
        missing = there.st_nlink
        folders = [self._here if is_in(path, self._here) else os.path.dirname(path)] if missing > 1 else []  # noqa: PTH120
        while missing and folders:
            with suppress(OSError), os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.inode() == there.st_ino and os.path.samestat(entry.stat(follow_symlinks=False), there):
                        missing -= 1
                        if entry.path != path and not self._is_known(entry.path):
                            yield entry.path

    @contextmanager
    def _refusing(self, path: str) -> Iterator[None]:
        """Where anything fails from here on, the place is not touched, and the verdict says so."""
        try:
            yield
        except OSError as error:
            size, why = 0, error.strerror or str(error)
            with suppress(OSError):
                size = os.lstat(path).st_size
            with suppress(OSError), self._locked():
                self._write({"path": path, "refused": why, "size": size})
            raise NotKeptError(f"{path} ({megabytes(size)}) cannot be put aside: {why}") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone with the journal, and up to date. A lock is an open file's: each thread, each process has its own."""
        fd = os.open(self._path, os.O_RDWR)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            self._catch_up(fd)
            yield
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)  # a process forked meanwhile holds the same file
            os.close(fd)

    def _catch_up(self, fd: int) -> None:
        data = os.pread(fd, os.fstat(fd).st_size - self._read, self._read)
        if not data.endswith(b"\n"):
            os.ftruncate(fd, self._read + data.rfind(b"\n") + 1)
        for _, _, values in read(data):
            self._learn(values)
        self._read += data.rfind(b"\n") + 1

    def _write(self, values: dict[str, Any]) -> None:
        """Adds a line, whole or not at all; the caller holds the lock."""
        line = TO_DO + json.dumps(values).encode() + b"\n"
        fd = os.open(self._path, os.O_WRONLY)
        try:
            if os.pwrite(fd, line, self._read) < len(line):
                os.ftruncate(fd, self._read)
                raise OSError(0, "no space left")
        finally:
            os.close(fd)
        self._learn(values)
        self._read += len(line)

    def _learn(self, values: dict[str, Any]) -> None:
        if "moved" in values:
            source, target = values["path"], values["moved"]
            everywhere = self._known.union(*(moved.known for moved in self._moved if _is_at(moved)))
            taken = {target + path[len(source) :] for path in everywhere if is_in(path, source)}
            gone = {path for path in everywhere if is_in(path, source) or is_in(path, target)}
            self._known = self._known - gone
            kept = [moved for moved in self._moved if not is_in(moved.target, source) and moved.target != target]
            self._moved = [moved._replace(known=moved.known - gone) for moved in kept]
            self._moved.append(Moved(target, values["id"], taken))
        elif "was" in values:
            self._known.add(values["path"])


def _is_at(moved: Moved) -> bool:
    """Whether the folder came to where it was to go: the call that was noted may have failed."""
    try:
        there = os.lstat(moved.target)
    except OSError:
        return False
    return [there.st_dev, there.st_ino] == moved.identity


def is_in(path: str, folder: str) -> bool:
    """Whether a path is a folder, or lies in it."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
