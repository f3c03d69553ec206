"""What a run's folder says of the run, whoever asks: the page, or a list of runs.

The folder is the only witness. A pid may be another process by now, and says nothing of another machine; the lock that
rank 0 holds is given back by the kernel whatever ended it, over NFS too::

    .lock held                                running
    result.json                               its outcome: finished, stopped, diverged, failed
    sessions.jsonl ends with an end           that session's outcome: it saved and left
    records.jsonl ends with an end            its outcome: a full disk took no result.json
    a job's number, and no record yet         submitted
    none of these                             killed

Whatever is missing or cannot be read counts as not there.
"""

from __future__ import annotations

import fcntl
import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from squall.report.values import mapping, number

SNAPSHOTS = "server"
"""The shards' sets of snapshots, of an asynchronous run: `squall.server.disk.FOLDER` (a test holds them together)."""

RECORDS, SESSIONS, RECIPE, STARTED, RESULT, LOCK, JOB = (
    "records.jsonl",
    "sessions.jsonl",
    "recipe.toml",
    "run.json",
    "result.json",
    ".lock",
    "slurm/job.json",
)
"""Names of `squall.run.folder`, a row above (a test holds them together); `squall train --submit` writes the last."""

OUTCOMES = ("finished", "stopped", "diverged", "failed")


def state(*, running: bool, outcomes: Iterable[object], submitted: bool) -> str:
    """How a run stands, in a word.

    Arguments:
        running: its lock is held.
        outcomes: what is said of its end, by whom it is to be believed first; what is no outcome does not count.
        submitted: it waits for its turn on a cluster, and has no records.
    """
    if running:
        return "running"
    for outcome in outcomes:
        if outcome in OUTCOMES:
            return str(outcome)
    return "submitted" if submitted else "killed"


def held(folder: Path) -> bool:
    """Whether a process of this or another machine holds the lock of a run's folder.

    Asked by taking it, shared, for a moment: several who look do not see each other, and it works across containers
    and network file systems, as a look into /proc/locks does not. No lock is made: a run that ends takes its own away.
    """
    try:
        lock = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks: no run could have begun here
        return False
    finally:
        os.close(lock)
    return False


def result_of(folder: Path, last_session: Mapping[str, Any]) -> dict[str, Any]:
    """How the run ended; nothing where it names no outcome, or processes have begun to work on the run again since."""
    try:
        written = (folder / RESULT).stat().st_mtime
    except OSError:
        return {}
    result = read_json(folder / RESULT)
    stale = number(last_session.get("time")) > written
    return {} if stale or result.get("outcome") not in OUTCOMES else result


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty where there is none."""
    try:
        return dict(mapping(json.loads(path.read_bytes())))
    except (OSError, ValueError, RecursionError):
        return {}


def read_toml(path: Path) -> tuple[str, Mapping[str, Any]]:
    """A TOML file: its text and what it says."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", {}
    try:
        return text, tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        return text, {}
