"""Where a role's process writes: the run's logs folder, a file a role.

Ray gives each worker a file of its own, named by a number, in a folder that is removed with the session. A role's
process turns its standard output and error, as descriptors, to a file named after the role: so what C++ and child
processes say goes there too, and a role that is started again writes on below what its earlier self said.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

_MOST_IN_FILE = 8 << 20
"""Bytes; a role that is started then begins a new file, beside which the one before stays."""

_TAIL = 64 << 10
"""Bytes at the end of a file that are looked through for a role's last words."""


def write_to(path: Path) -> None:
    """From now on this process writes its standard output and error to a file, line by line, after what is there.

    Raises:
        OSError: the file cannot be opened.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > _MOST_IN_FILE:
        path.replace(path.with_suffix(".older.log"))
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
            stream.flush()
            os.dup2(file, number)  # the copy is inherited by child processes
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(line_buffering=True)
    finally:
        os.close(file)


def heading(name: str) -> str:
    """What the line begins with below which one incarnation of a role writes; its number follows."""
    return f"{name}, incarnation "


def last_lines(path: Path, name: str, count: int) -> list[str]:
    """The last lines of a role's newest incarnation; of a long file only the end is read."""
    try:
        with path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - _TAIL, 0))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    begins = [index for index, line in enumerate(lines) if line.startswith(heading(name))]
    return lines[begins[-1] + 1 if begins else 0 :][-count:]
