"""A file of records read as it grows: only what was appended since the last look.

A run that is resumed cuts its records back to a checkpoint and appends others, perhaps more than there were before. So
the last line that was read is looked at again: if it no longer stands where it stood, the file is read from its
beginning.

    look 1   [started][step 0][step 1][st            the torn end waits until it is whole
    look 2   [started][step 0][step 1][step 2]       from the end of step 1 on
    cut      [started][step 0]                       step 1 is gone: all anew
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Tail:
    """Reads a file of one JSON object a line, again and again.

    Attributes:
        torn: whether the last look ended in a line that is not whole.
        damaged: whole lines that are no JSON objects; they are left out.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._end = 0
        self._last = b""
        self.torn = False
        self.damaged = 0

    def look(self) -> tuple[bool, list[dict[str, Any]]]:
        """What is new.

        Returns:
            Whether the file was begun anew (what was read before is void), and the records since the last look.
        """
        try:
            with self._path.open("rb") as file:
                anew = not self._stands(file)
                if anew:
                    self._end, self._last, self.damaged = 0, b"", 0
                file.seek(self._end)
                text = file.read()
        except OSError:  # not there yet, or no longer
            anew = self._end > 0
            self._end, self._last, self.damaged, self.torn = 0, b"", 0, False
            return anew, []
        return anew, self._take(text)

    def _stands(self, file: Any) -> bool:
        file.seek(self._end - len(self._last))
        return bool(file.read(len(self._last)) == self._last)

    def _take(self, text: bytes) -> list[dict[str, Any]]:
        whole = text[: text.rfind(b"\n") + 1]
        self.torn = len(whole) < len(text)
        records = []
        for line in whole.splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if isinstance(record, dict):
                records.append(record)
            elif line.strip():
                self.damaged += 1
        if whole:
            self._end += len(whole)
            self._last = whole[whole[:-1].rfind(b"\n") + 1 :]
        return records
