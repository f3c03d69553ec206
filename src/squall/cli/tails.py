"""The ends of files of records, read without what lies between: a list of runs must not parse all of their steps.

Whatever cannot be read counts as not there: a line that is being written or was torn, bytes of something else, a file
that has just gone.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from squall.report import values

Values = dict[str, Any]

_KIND = re.compile(rb'\s*\{"kind": "(\w+)"')
_SIZES = (1 << 14, 1 << 17, 1 << 20)  # most runs answer with the first; an epoch's record may lie far back


def first(path: Path) -> Values:
    """The first record of a file; empty if it is none."""
    try:
        with path.open("rb") as file:
            return _record(file.readline(_SIZES[-1]))
    except OSError:
        return {}


def last(path: Path, *kinds: str) -> dict[str, Values]:
    """The last record of each kind, looked for from the end of a file, at most a megabyte deep."""
    found: dict[str, Values] = {}
    for size in _SIZES:
        lines, whole = _tail(path, size)
        for line in reversed(lines):
            kind = _kind(line)
            if kind in kinds and kind not in found and (record := _record(line)):
                found[kind] = record
        if whole or len(found) == len(kinds):
            break
    return found


def newest(path: Path) -> Iterator[Values]:
    """The last few records of a file, the newest first."""
    for line in reversed(_tail(path, _SIZES[0])[0]):
        if record := _record(line):
            yield record


def every(path: Path) -> Iterator[Values]:
    """All records of a file, in order."""
    with suppress(OSError), path.open("rb") as file:
        for line in file:
            if record := _record(line):
                yield record


def number(value: Any) -> float | None:
    """A finite number of a record; None if it is none."""
    found = values.number(value)
    return found if math.isfinite(found) else None


def whole(value: Any) -> int | None:
    """A count of a record; None if it is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _tail(path: Path, size: int) -> tuple[list[bytes], bool]:
    """The whole lines among a file's last bytes, and whether those are all that there are."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            start = file.seek(max(end - size, 0))
            lines = file.read(size).splitlines()
    except OSError:
        return [], True
    return (lines, True) if start == 0 else (lines[1:], False)


def _kind(line: bytes) -> str:
    match = _KIND.match(line)
    return match[1].decode() if match else ""


def _record(line: bytes) -> Values:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) and isinstance(record.get("kind"), str) else {}
