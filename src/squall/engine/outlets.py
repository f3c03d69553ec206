"""Where bytes go that ranks have written: a thread with a queue before each thing that may stand still.

A terminal stands still at Ctrl-S or behind a pager, a disk when it hangs. Whoever reads what ranks write must not, or
the ranks would: so the queue takes what fits, and what does not is counted and left out.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

CHUNK = 1 << 16
"""Bytes that are read at once."""

CLOSE_S = 5.0
"""Seconds that something may stand still at the end."""

_MOST_WAITING = 1 << 20  # bytes of a queue
_MOST_IN_FILE = 8 << 20


@dataclass(frozen=True)
class LogFolder:
    """Where the files of ranks go.

    Arguments:
        path: of the folder; made when there is something to write.
        after: what is there once the run has begun; nothing is written before.
    """

    path: Path
    after: Path

    def file(self, rank: int) -> Path:
        """The file of a rank."""
        return self.path / f"rank-{rank}.log"


class Outlet:
    """A thread that hands bytes on to something that may stand still; whoever puts them in never waits.

    Arguments:
        write: called with a key and bytes, in this thread.
        finish: called there when all is written.
    """

    def __init__(self, write: Callable[[int, bytes], None], finish: Callable[[], None] = lambda: None) -> None:
        self._write, self._finish = write, finish
        self._queue: deque[tuple[int, bytes]] = deque()
        self._waiting = 0
        self._left_out: dict[int, int] = {}
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="squall-rank-output", daemon=True)
        self._thread.start()

    def put(self, key: int, data: bytes) -> None:
        """Takes bytes, or counts their lines where too much waits already."""
        with self._changed:
            if self._waiting + len(data) > _MOST_WAITING:
                self._left_out[key] = self._left_out.get(key, 0) + data.count(b"\n")
                return
            self._queue.append((key, data))
            self._waiting += len(data)
            self._changed.notify()

    def close(self) -> bool:
        """Hands on what is left; False if that did not come to an end in time."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(CLOSE_S)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._left_out or self._closing)
                taken, self._queue = self._queue, deque()
                left_out, self._left_out = self._left_out, {}
            if not taken and not left_out:
                self._finish()
                return
            for key, data in taken:
                self._write(key, data)
                with self._changed:
                    self._waiting -= len(data)
            for key, lines in left_out.items():
                self._write(key, f"squall: {lines:,} lines left out: they came faster than they could go\n".encode())


class Terminal:
    """Writes to the launcher's own standard output and error (keys 1 and 2); one whose reader is gone is given up.

    Whoever shares a terminal or a pipe with us may have set it not to block: then it is waited for here.
    """

    def __init__(self) -> None:
        self._gone: set[int] = set()

    def __call__(self, fd: int, data: bytes) -> None:
        """Writes all of it."""
        view = memoryview(data)
        while view and fd not in self._gone:
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:
                select.select([], [fd], [])
            except OSError:
                self._gone.add(fd)


class Files:
    """Appends what ranks write (keys are ranks) to a file each, from when the run has begun; of what came before, the
    last is kept in memory until then. A full disk costs lines, nothing else."""

    def __init__(self, folder: LogFolder) -> None:
        self._folder = folder
        self._early: dict[int, bytes] = {}
        self._begun: set[int] = set()

    def __call__(self, rank: int, data: bytes) -> None:
        """Writes, or keeps for later."""
        data = self._early.pop(rank, b"") + data
        if rank not in self._begun:
            if not os.path.lexists(self._folder.after):  # no exception where a disk does not answer
                self._early[rank] = data[-CHUNK:]
                return
            self._begun.add(rank)
            data = f"-- {datetime.now():%Y-%m-%d %H:%M:%S}, rank {rank}\n".encode() + data
        path = self._folder.file(rank)
        with suppress(OSError):
            self._folder.path.mkdir(exist_ok=True)
            if path.exists() and path.stat().st_size > _MOST_IN_FILE:
                path.replace(path.with_suffix(".older.log"))
            with path.open("ab") as file:
                file.write(data)

    def finish(self) -> None:
        """Writes what was kept, if the run has begun since."""
        for rank in list(self._early):
            self(rank, b"")
