"""The run's folder: what a run leaves behind, and the lock that keeps a second writer out.

recipe.toml          the resolved recipe
run.json             how it was started: target, flags, or the script of a loop of one's own; the fields of squall.Run
records.jsonl        what happened, an event a line; tb/ holds it as TensorBoard events where that is installed
sessions.jsonl       who worked on it and when: processes that came and left, checkpoints, slow ranks
checkpoints/         step-NNNNNNNN: a state to go on from (`squall.checkpoint`)
logs/                what ranks and trackers wrote to standard error, and tracebacks
trackers.json        who else got the records, and under which name
weights.safetensors  final weights and buffers under the module's own names; ema.safetensors beside it
result.json          how the run ended

A run whose end nobody could write (a process killed outright) has records and no result.json.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from squall.errors import InputError
from squall.records import Ended, finite

WEIGHTS = "weights.safetensors"
EMA_WEIGHTS = "ema.safetensors"
RECIPE = "recipe.toml"
RECORDS = "records.jsonl"
SESSIONS = "sessions.jsonl"
STARTED = "run.json"
CHECKPOINTS = "checkpoints"
LOGS = "logs"

ENDS = ("finished", "diverged")
"""Outcomes after which a run does not go on."""

RESULT = "result.json"
_LOCK = ".lock"
_TRIES = 100
_LOOKS = 5
_LOOK_S = 0.01
_LONGEST_LINE = 1 << 20


class Folder:
    """A run folder opened for writing by one process.

    Arguments:
        path: of the folder; made if it is not there.
        ended: it may hold a run, which its own processes write no more.
        goes_on: it may hold a run that did not come to its end.

    Raises:
        InputError: not writable, in use by another process, or holding another run already.
    """

    def __init__(self, path: Path, *, ended: bool = False, goes_on: bool = False) -> None:
        self.path = path
        check = check_open if goes_on else check_free
        if not ended:
            check(path)
        self._lock, self._made = _locked(path)
        if ended:
            return
        try:
            check(path)  # a run may have ended here in between
        except InputError:
            self.close()
            raise

    def close(self) -> None:
        """Gives the folder free; one that was made and holds nothing is taken away again.

        The lock's file goes while the lock is held: whoever opened it before finds out in `_locked`.
        """
        if self._lock >= 0:
            (self.path / _LOCK).unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1
            if self._made:
                with suppress(OSError):
                    self.path.rmdir()


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(finite(values), indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a small file whole or not at all, to the disk; one that says the same is left alone."""
    with suppress(OSError, UnicodeDecodeError):
        if path.read_text(encoding="utf-8") == text:
            return
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def note_end(path: Path, ended: Ended) -> None:
    """Says in a run's folder how the run ended that did not come to its result; as far as the disk lets it.

    Arguments:
        path: the folder; nobody writes its records any more.
        ended: the last record; what it holds as result becomes result.json.
    """
    with suppress(OSError):
        write_json(path / RESULT, ended.result)
    with suppress(OSError), (path / RECORDS).open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        start = file.seek(max(size - _LONGEST_LINE, 0))
        file.seek(start + file.read().rfind(b"\n") + 1)  # a full disk may have torn the last line
        file.truncate()
        file.write(ended.to_json().encode() + b"\n")


def clear(path: Path) -> None:
    """Takes away what a run has left that never began: nothing was trained. A log of what went wrong stays."""
    if not (path / RECORDS).exists():
        (path / RECIPE).unlink(missing_ok=True)
        (path / STARTED).unlink(missing_ok=True)


def outcome(path: Path) -> str | None:
    """How the run of a folder ended: "" if nobody could say so, None if there is no run."""
    if not (path / RECORDS).exists():
        return None
    try:
        return str(json.loads((path / RESULT).read_text(encoding="utf-8")).get("outcome", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def check_open(path: Path) -> None:
    """Refuses a folder with a run that came to its end, or one that cannot be written; creates nothing.

    Raises:
        InputError: saying what is there and what to do.
    """
    ended = outcome(path)
    if ended in ENDS:
        same = "it would compute the same numbers again" if ended == "diverged" else "a run never overwrites another"
        raise InputError(
            f"the run folder {path} holds a run that {'diverged' if ended == 'diverged' else 'is finished'}",
            [("rule", same), ("to do", f"begin a new run in another folder, or remove {path}")],
        )
    _check_writable(path)


def check_free(path: Path) -> None:
    """Refuses a folder that holds a run already or cannot be written; creates nothing.

    Raises:
        InputError: saying what is there and what to do.
    """
    if (path / RECORDS).exists():
        resume = "" if outcome(path) in ENDS else f"squall resume {path}, or "
        raise InputError(
            f"the run folder {path} holds a run already",
            [
                ("rule", "a run never overwrites another"),
                ("to do", f"{resume}choose another folder with --out DIR, or remove {path}"),
            ],
        )
    _check_writable(path)


def _check_writable(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file", [("rule", "a run needs a folder"), ("to do", "--out DIR")])
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if os.statvfs(existing).f_flag & os.ST_RDONLY:
        raise _unwritable(path, OSError(errno.EROFS, os.strerror(errno.EROFS)))
    if not os.access(existing, os.W_OK | os.X_OK):
        raise _unwritable(path, PermissionError(f"no permission to write in {existing}"))


def make(path: Path) -> bool:
    """Makes a folder for this process alone; False where another process was faster (look, and try again).

    Raises:
        InputError: not writable.
    """
    check_free(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        path.mkdir()
    except (FileExistsError, FileNotFoundError):  # made by another, or its empty parent was just taken away
        return False
    except OSError as error:
        raise _unwritable(path, error) from error
    return True


def _locked(path: Path) -> tuple[int, bool]:
    """The descriptor of the folder's lock, held, and whether the folder had to be made.

    A writer that ends removes the file, and the folder if nothing is in it: a lock on a file that is no longer the
    one at its path keeps nobody out, so that it is taken again on the present one::

        A: holds .lock    unlinks it    closes
        B:      opens A's file                locks it    not the file at the path: again
    """
    made = False
    for attempt in range(_TRIES):
        made = made or not path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = os.open(path / _LOCK, os.O_CREAT | os.O_RDWR, 0o644)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            if attempt < _LOOKS:  # somebody may be looking whether it is held, for microseconds
                time.sleep(_LOOK_S)
                continue
            raise InputError(
                f"the run folder {path} is in use by another process",
                [("rule", "one run, one writer"), ("to do", "wait for it, or choose another folder with --out DIR")],
            ) from error
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), (path / _LOCK).stat()):
                return lock, made
        os.close(lock)
    raise _unwritable(path, FileNotFoundError("its lock is removed again and again"))


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"the run folder {path} cannot be written",
        [("found", error.strerror or str(error)), ("to do", "choose another folder with --out DIR")],
    )
