"""A run's records as TensorBoard events, where tensorboard is installed; without it nothing happens.

Events are written by tensorboard's own record writer, in the call that brings them: no thread, no queue, and nothing is
lost when a run is killed. What cannot be written (a full disk) switches the writer off, and the run goes on.

Each session writes a file of its own. Its first event says at which step the session starts: TensorBoard then forgets
the points from there on that an earlier session, killed later than its last checkpoint, has left.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from squall.records import Record
from squall.run.scalars import Scalars

FOLDER = "tb"
_PREFIX = "events.out.tfevents."


def installed() -> bool:
    """Whether events can be written; costs no import."""
    spec = importlib.util.find_spec("tensorboard")
    return spec is not None and spec.origin is not None  # a folder of that name is no package


class TensorBoard:
    """A sink that writes scalars.

    Arguments:
        folder: of the events' file; made with the first number, when tensorboard is imported too (0.2 s).
        start_step: the first step of this session.
        warn: told once, should the events not be writable any more.
    """

    def __init__(self, folder: Path, start_step: int = 0, warn: Callable[[str], None] | None = None) -> None:
        self._folder = folder
        self._start_step = start_step
        self._warn = warn
        self._scalars = Scalars()
        self._file: Any = None
        self._off = False

    def __call__(self, record: Record) -> None:
        """Writes one record's numbers."""
        if self._off or (point := self._scalars(record)) is None:
            return
        try:
            self._write(point.step, point.values)
        except Exception as error:  # whatever it is, it must not stop the training
            self._off = True
            self.close()
            if self._warn is not None:
                self._warn(f"tensorboard is off: {type(error).__name__}: {error}; the run goes on")

    def close(self) -> None:
        """Closes the file; what a full disk did not take was an error when it was written."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        now = time.time()
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = RecordWriter((self._folder / _next_name(self._folder, int(now))).open("xb"))
            self._file.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
            start = SessionLog(status=SessionLog.START)
            self._file.write(Event(wall_time=now, step=self._start_step, session_log=start).SerializeToString())
        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._file.write(Event(wall_time=now, step=step, summary=Summary(value=scalars)).SerializeToString())
        self._file.flush()


def _next_name(folder: Path, now: int) -> str:
    """A file's name that comes after those that are there: TensorBoard reads them in the order of their names."""
    times = [int(path.name[len(_PREFIX) :][:10]) for path in folder.glob(f"{_PREFIX}{'[0-9]' * 10}.*")]
    return f"{_PREFIX}{max(now, *(time + 1 for time in times), 0):010d}.{socket.gethostname()}.{os.getpid()}.0"
