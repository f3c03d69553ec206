"""Names of run folders, and what the command line leaves in them."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

from squall.errors import UserCodeError
from squall.run.folder import make

RUNS = Path("runs")


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


def log_traceback(error: UserCodeError, folder: Path, rank: int) -> UserCodeError:
    """Writes the whole traceback of the user's code into the run's folder, and says so in the error's last line."""
    if not error.traceback or not folder.is_dir():
        return error
    path = folder / f"rank-{rank}.log"
    try:
        path.write_text(error.traceback, encoding="utf-8")
    except OSError:
        return error
    logged = UserCodeError(error.headline, error.rows, f"whole traceback: {path}")
    logged.traceback = error.traceback
    return logged
