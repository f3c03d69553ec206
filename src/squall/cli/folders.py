"""Names of run folders, and what the command line leaves in them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TextIO

from squall.errors import InputError, UserCodeError
from squall.records import Ended, read
from squall.run.folder import LOGS, RECORDS, RESULT, Folder, clear, make, note_end, write_json

RUNS = Path("runs")
_SIGNALLED = 128  # a job's exit status is this and the number of the signal that stopped its launcher


def fresh(name: str, now: datetime | None = None, runs: Path = RUNS, *, create: bool = False) -> Path:
    """A folder that does not exist yet: runs/NAME-MMDD-HHMM, with a number behind it where that is taken.

    Arguments:
        create: make it, so that of two processes that ask in one minute each has its own.

    Raises:
        InputError: it is to be made and cannot.
    """
    stem = f"{name}-{now or datetime.now():%m%d-%H%M}"
    path, number = runs / stem, 2
    while True:
        if os.path.lexists(path):
            path, number = runs / f"{stem}-{number}", number + 1
        elif not create or make(path):
            return path


@contextmanager
def whole(path: Path) -> Iterator[TextIO]:
    """A text file to write that takes its name when it is whole; until then, and after an error, the old one stays.

    What is no plain file (a pipe, /dev/stdout, a link to somewhere else) is written in place.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        with path.open("w", newline="", encoding="utf-8") as file:
            yield file
        return
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("w", newline="", encoding="utf-8") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def note_ranks_end(folder: Path, status: int, message: str, *, made: bool) -> None:
    """After all ranks have ended: what rank 0 could not write itself, killed or stopped by the end of another.

    Arguments:
        folder: the run's.
        status: what the job ends with.
        message: what its launcher said.
        made: the folder was made for this run.
    """
    if not folder.is_dir():
        return
    try:
        taken = Folder(folder, ended=True)  # a killed rank's lock goes with it
    except InputError:  # another run was faster: the ranks left it alone, and so do we
        return
    try:
        if (folder / RECORDS).is_file():
            with suppress(OSError, ValueError):  # a full disk, a torn record: the error itself is said all the same
                _complete(folder, status, message)
        else:
            clear(folder)  # nothing was trained
    finally:
        taken.close()
    if made:
        with suppress(OSError):
            folder.rmdir()


def _complete(folder: Path, status: int, message: str) -> None:
    """Writes how a run ended if its rank 0 did not, and the error that explains it instead of one that follows."""
    headline = _headline(message)
    if not (folder / RESULT).is_file():
        events = read(folder / RECORDS)
        steps = [event for event in events if event["kind"] == "step"]
        done, seconds = (steps[-1]["step"] + 1, steps[-1]["seconds"]) if steps else (0, 0.0)
        outcome = "stopped" if status > _SIGNALLED else "failed"
        name = next((event["name"] for event in events if event["kind"] == "started"), folder.name)
        found = {"name": name, "outcome": outcome, "steps": done, "error": headline, f"{outcome}_at_step": done}
        note_end(folder, Ended(outcome, "", seconds, {**found, "seconds": seconds}))
        return
    found = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    if found["outcome"] == "failed" and found["error"] != headline:
        write_json(folder / RESULT, {**found, "error": headline})


def _headline(message: str) -> str:
    """A launcher's message in one line; of a traceback its last."""
    first, *rest = message.splitlines() or [""]
    headline = re.sub(r"\s*\(exit \d+\)$", "", first).removeprefix("squall: ")
    if rest and rest[0].startswith("Traceback"):
        headline += ": " + next((line for line in reversed(rest) if not line.startswith(" ")), "")
    return headline


def log_traceback(error: UserCodeError, folder: Path, rank: int) -> UserCodeError:
    """Writes the whole traceback of the user's code into the run's folder, and says so in the error's last line."""
    if not error.traceback:
        return error
    path = folder / LOGS / f"rank-{rank}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:  # the launcher writes there what the rank printed
            file.write(error.traceback)
    except OSError:
        return error
    logged = UserCodeError(error.headline, error.rows, f"whole traceback: {path}")
    logged.traceback = error.traceback
    return logged
