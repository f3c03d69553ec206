"""What ranks write goes through the launcher: to the terminal at once, into a file each, and the last lines are kept.

A rank that dies says why in its last lines, if anywhere, and on a terminal that all ranks share they are lost among the
others'. So each rank's standard error, and the standard output of all but rank 0 (whose live bar needs the terminal),
is a pipe to the launcher::

    rank 1  --pipe-->  reader thread  --queue-->  terminal thread   whole lines, never mixed
                            |         --queue-->  file thread       logs/rank-1.log
                       last lines of each rank

The reader never waits, so that no rank does (`outlets`). Files are begun when the run has begun; a run that never does
leaves nothing.
"""

from __future__ import annotations

import math
import os
import re
import selectors
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from squall.engine.outlets import CHUNK, CLOSE_S, Files, LogFolder, Outlet, Terminal

LINES = 60
"""Last lines of a rank that are kept."""

_LONGEST_LINE = 500
_SLOW_S = 0.2  # a line whose end does not come is shown without it
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")


class Tail:
    """The last lines of a stream of bytes, as a terminal would show them: without control sequences, and of a line that
    was written over again and again its last state."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=LINES)
        self._open = b""

    def add(self, data: bytes) -> None:
        """Takes what came next; holds no more than a chunk of a line without an end."""
        *whole, last = (self._open + data).split(b"\n")
        for line in whole[-LINES:]:
            self._lines += self._shown(line)
        self._open = last[-CHUNK:]

    def lines(self) -> list[str]:
        """The last lines, the one under way too."""
        return [*self._lines, *self._shown(self._open)][-LINES:]

    def _shown(self, line: bytes) -> list[str]:
        text = line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace")
        text = _CONTROL.sub("", text).rstrip()[:_LONGEST_LINE]
        return [text] if text else []


@dataclass
class _Stream:
    """One end that the launcher reads: of which rank, and to which descriptor of the launcher it is handed on."""

    rank: int
    to: int
    held: bytes = b""  # a line whose end has not come
    since: float = 0.0
    whole: bool = True  # what was handed on ended with a line


class RankLogs:
    """The pipes of all ranks and what becomes of the bytes; a context that is left when all ranks have ended.

    Arguments:
        processes: ranks.
        folder: of their files; None: no files.
    """

    def __init__(self, processes: int, folder: LogFolder | None) -> None:
        self._folder = folder
        self._tails = [Tail() for _ in range(processes)]
        self._selector = selectors.DefaultSelector()
        self._stop, self._stopper = os.pipe2(os.O_CLOEXEC)
        self._selector.register(self._stop, selectors.EVENT_READ)
        self._terminal = Outlet(Terminal())
        files = Files(folder) if folder is not None else None
        self._files = Outlet(files, files.finish) if files is not None else None
        self._thread = threading.Thread(target=self._read, name="squall-rank-logs", daemon=True)

    @contextmanager
    def pipes(self, rank: int) -> Iterator[tuple[int | None, int]]:
        """What a rank gets as standard output (None: the launcher's own) and as standard error, to start it with.

        Afterwards only the rank holds the ends that it writes to.
        """
        writers: dict[int, int] = {}
        try:
            for to in (1, 2) if rank else (2,):
                reader, writers[to] = os.pipe2(os.O_CLOEXEC)
                os.set_blocking(reader, False)
                self._selector.register(reader, selectors.EVENT_READ, _Stream(rank, to))
            yield writers.get(1), writers[2]
        finally:
            for writer in writers.values():
                os.close(writer)

    def listen(self) -> None:
        """All ranks have their pipes: from now on they are read."""
        self._thread.start()

    def close(self) -> None:
        """Reads what is left and hands it on. A process that escaped may hold an end open: nobody waits for that."""
        if self._stopper < 0:
            return
        os.close(self._stopper)
        self._stopper = -1
        if not self._thread.ident:
            self._thread.start()
        self._thread.join()
        self._selector.close()
        self._terminal.close()
        if self._files is not None:
            self._files.close()

    def tails(self) -> dict[int, list[str]]:
        """The last lines of each rank, once closed."""
        return {rank: tail.lines() for rank, tail in enumerate(self._tails)}

    def paths(self) -> dict[int, Path]:
        """The files of those ranks that have one."""
        if self._folder is None:
            return {}
        paths = {rank: self._folder.file(rank) for rank in range(len(self._tails))}
        return {rank: path for rank, path in paths.items() if os.path.lexists(path)}

    def __enter__(self) -> RankLogs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        """The reader thread."""
        end = math.inf  # finite once it is told to stop
        while time.monotonic() < end:
            streams = self._streams()
            slow = any(stream.held for stream in streams.values())
            ready = self._selector.select(0 if end < math.inf else _SLOW_S if slow else None)
            if not ready and end < math.inf:
                break
            for key, _ in ready:
                if key.fd == self._stop:
                    self._selector.unregister(self._stop)
                    end = time.monotonic() + CLOSE_S
                elif data := _taken(key.fd):
                    self._pass_on(key.data, data)
                else:
                    self._end(key.fd, key.data)
            for stream in streams.values():
                if time.monotonic() - stream.since > _SLOW_S:
                    self._show(stream, len(stream.held))
        for fd, stream in self._streams().items():
            self._end(fd, stream)
        os.close(self._stop)

    def _streams(self) -> dict[int, _Stream]:
        return {key.fd: key.data for key in self._selector.get_map().values() if key.data is not None}

    def _pass_on(self, stream: _Stream, data: bytes) -> None:
        """Keeps the last lines, and hands on what is whole."""
        self._tails[stream.rank].add(data)
        if self._files is not None:
            self._files.put(stream.rank, data)
        stream.held += data
        stream.since = time.monotonic()
        self._show(stream, max(stream.held.rfind(b"\n"), stream.held.rfind(b"\r")) + 1)
        if len(stream.held) > CHUNK:
            self._show(stream, len(stream.held))

    def _show(self, stream: _Stream, length: int) -> None:
        """Hands the first bytes of what is held to the terminal."""
        if length:
            self._terminal.put(stream.to, stream.held[:length])
            stream.whole = stream.held[length - 1 : length] == b"\n"
            stream.held = stream.held[length:]

    def _end(self, fd: int, stream: _Stream) -> None:
        """Nothing more will come: the line under way is ended."""
        self._show(stream, len(stream.held))
        if not stream.whole:
            self._terminal.put(stream.to, b"\n")
        self._selector.unregister(fd)
        os.close(fd)


def _taken(fd: int) -> bytes:
    """What is there to be read; nothing at the end."""
    try:
        return os.read(fd, CHUNK)
    except OSError:
        return b""
