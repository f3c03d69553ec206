"""A run's folder as it lies on the disk: names of files, the lock, files read whole."""

from __future__ import annotations

import fcntl
import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from squall.report.values import mapping, number

RECORDS, SESSIONS, RECIPE, STARTED, RESULT, LOCK, JOB = (
    "records.jsonl",
    "sessions.jsonl",
    "recipe.toml",
    "run.json",
    "result.json",
    ".lock",
    "slurm/job.json",
)
"""Names of `squall.run.folder` and of the command line, rows above; a test holds them together."""


def held(lock: Path) -> bool:
    """Whether a process holds a lock's file.

    Asked by taking it, shared, for a moment: that works across containers and network file systems, as a look into
    /proc/locks does not. It is asked only while the file is there: a run that ends takes its lock away.
    """
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def result_of(path: Path, events: list[dict[str, Any]]) -> Mapping[str, Any]:
    """How the run ended; nothing where processes have begun to work on it again since."""
    began = [number(event.get("time")) for event in events if event.get("kind") == "session"]
    try:
        stale = bool(began) and began[-1] > path.stat().st_mtime
    except OSError:
        return {}
    return {} if stale else json_of(path)


def json_of(path: Path) -> Mapping[str, Any]:
    """A JSON file that holds an object; empty where there is none."""
    try:
        return mapping(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return {}


def toml_of(path: Path) -> tuple[str, Mapping[str, Any]]:
    """A TOML file: its text and what it says."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", {}
    try:
        return text, tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return text, {}
