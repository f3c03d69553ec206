"""What another process asks of a run: a file in its folder, which rank 0 looks for once a second.

A file reaches a run on any machine that shares the folder, under any launcher, as a signal does not.

    .request.json   {"do": "stop"} or {"do": "resize", "processes": 3}; taken away by the run that follows it
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from squall.run.folder import write_json

FILE = ".request.json"

RESIZED = 75
"""Exit status of ranks that saved and left to be started again in another number (EX_TEMPFAIL of sysexits.h)."""


@dataclass(frozen=True)
class Request:
    """What is asked: to save and stop, or to go on with another number of processes, or of replicas."""

    do: Literal["stop", "resize"]
    processes: int = 0
    replicas: int = 0


def ask(folder: Path, request: Request) -> None:
    """Asks a run; what was asked before and not yet followed is forgotten."""
    write_json(folder / FILE, asdict(request))


def waiting(folder: Path) -> Request | None:
    """What is asked of a run now."""
    try:
        values = json.loads((folder / FILE).read_text(encoding="utf-8"))
        request = Request(**values)
    except (OSError, ValueError, TypeError):
        return None
    return request if request.do in ("stop", "resize") else None


def take_away(folder: Path) -> None:
    """Forgets what was asked."""
    with suppress(OSError):
        (folder / FILE).unlink()
