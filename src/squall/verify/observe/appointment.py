"""A number that rank 0 says once, and all ranks of a job read: after which epoch or update they go.

Nobody can have passed it when it is said: it lies ahead of rank 0, which the others need for each update.
"""

from __future__ import annotations

from pathlib import Path


class Appointment:
    """A file in the job's folder; it is there with its number, or not at all."""

    def __init__(self, folder: Path, name: str) -> None:
        self._file = folder / name

    @property
    def number(self) -> int | None:
        """What was said; None as long as nothing was."""
        try:
            return int(self._file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def make(self, number: int) -> None:
        """Says it, for good."""
        new = self._file.with_name(self._file.name + ".new")
        new.write_text(str(number), encoding="utf-8")
        new.replace(self._file)
