"""Kills a training shortly after it has written a checkpoint, as a power cut would: SIGKILL, all ranks, in mid-epoch.

Rank 0 looks at the checkpoints' folder after each update. Once files have come and stay as they are, it says after
which update everybody is to go; nobody can have passed that update, since each needs rank 0.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from squall.verify.observe.appointment import Appointment
from squall.verify.observe.recorder import Recorder

KILL = "kill-after-update"
"""File in the job's folder: the update after which all ranks kill themselves."""

_LATER = 2  # updates between a checkpoint and the kill
_FIRST = 3  # updates before which no checkpoint counts: what is there then is no state of a training


class Interruption:
    """Watches a folder for checkpoints, and ends its process in time."""

    def __init__(self, recorder: Recorder, watched: Path) -> None:
        self.recorder, self.watched = recorder, watched
        self._end = Appointment(recorder.folder, KILL)
        self._before: dict[str, tuple[int, int]] | None = None

    def stepped(self, updates: int) -> None:
        """After an update: kills this process if it was the last."""
        if self.recorder.rank == 0 and self._end.number is None:
            files = self._files()
            if files and files == self._before and updates >= _FIRST:
                self._end.make(updates + _LATER)
            self._before = files
        end = self._end.number
        if end is not None and updates >= end:
            os.kill(os.getpid(), signal.SIGKILL)

    def _files(self) -> dict[str, tuple[int, int]]:
        found = {}
        for path in self.watched.rglob("*"):
            try:
                state = path.stat()
            except OSError:  # just renamed
                return {}
            if path.is_file():
                found[str(path)] = (state.st_size, state.st_mtime_ns)
        return found
