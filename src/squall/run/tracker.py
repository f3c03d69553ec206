"""A tracker as a sink: it takes records at the training's pace and hands them on at its own.

Between the two stands a bounded buffer that one thread empties. The training only ever appends to it::

    record -> point (steps: one a second) -> buffer -> thread -> process of the tracker's client -> server
                                             full: the oldest step goes

Everything that may wait or fail happens in the thread and in the process behind it (`track_child`), beginning with the
tracker's import. What the thread has to say is said by the next call, so that nothing runs beside the training's
own sinks. A tracker that fails is off; the run goes on.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from squall.records import Ended, Record, SessionEnded
from squall.run.scalars import Point, Scalars, of_result
from squall.run.track_child import Child

CLOSE_S = 10.0
CAPACITY = 1024
_BATCH = 256
_KILLED_S = 2.0  # for a killed process to be gone

Sent = tuple[int, float, Mapping[str, float]]
"""A point as a tracker gets it: step, seconds since 1970, values by name."""


class Buffer:
    """The points that wait, oldest first; a full one loses steps before it loses anything else.

    Arguments:
        capacity: points that it holds.

    Attributes:
        dropped: points that were lost.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._thin: deque[tuple[int, float, Point]] = deque()
        self._rest: deque[tuple[int, float, Point]] = deque()
        self._count = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._thin) + len(self._rest)

    def put(self, point: Point, when: float) -> None:
        """Adds a point; where there is no room, at the price of the oldest step, or of itself if it is the only one."""
        if len(self) >= self._capacity:
            self.dropped += 1
            if point.thin and not self._thin:
                return
            (self._thin or self._rest).popleft()
        (self._thin if point.thin else self._rest).append((self._count, when, point))
        self._count += 1

    def take(self, most: int = _BATCH) -> list[Sent]:
        """The oldest points, taken out: (step, time, values)."""
        taken: list[Sent] = []
        while len(taken) < most and len(self):
            queue = min((queue for queue in (self._thin, self._rest) if queue), key=lambda queue: queue[0][0])
            _, when, point = queue.popleft()
            taken.append((point.step, when, point.values))
        return taken

    def clear(self) -> None:
        """Forgets all points."""
        self._thin.clear()
        self._rest.clear()


class Tracker:
    """A sink that hands a run's numbers to a tracker.

    Nothing is started before the first record.

    Arguments:
        name: of the tracker, for messages.
        module: defines its `Client` (`track_child`).
        about: arguments of `Client.start`.
        config: what the run is configured with, flat.
        keep: is told what the tracker calls the run.
        warn: is told, in the calls of the sink, what a person should know.
        log: file for the traceback of an error.
        close_s: seconds that the last values have to arrive after the run's end.
    """

    def __init__(
        self,
        name: str,
        module: str,
        about: Mapping[str, Any],
        config: Mapping[str, Any],
        *,
        keep: Callable[[str], None],
        warn: Callable[[str], None],
        log: Path | None = None,
        close_s: float = CLOSE_S,
    ) -> None:
        self.name = name
        self._module, self._about, self._config = module, about, config
        self._keep, self._warn, self._log, self._close_s = keep, warn, log, close_s
        self._scalars = Scalars()
        self._process = os.getpid()
        self._changed = threading.Condition()  # guards all below
        self._buffer = Buffer()
        self._ended: dict[str, Any] = {"outcome": "stopped", "result": {}}
        self._step = 0
        self._words: list[str] = []
        self._child: Child | None = None
        self._thread: threading.Thread | None = None
        self._until = math.inf  # of the monotonic clock: when the last values must have arrived
        self._off = False

    def __call__(self, record: Record) -> None:
        """Takes a record's numbers; never waits."""
        self._say()
        point = self._scalars(record)
        if point is None and self._thread is not None and not isinstance(record, Ended | SessionEnded):
            return
        with self._changed:
            if self._off or self._until < math.inf:
                return
            if point is not None:
                self._buffer.put(point, time.time())
                self._step = max(self._step, point.step)
            if isinstance(record, SessionEnded):
                self._ended["outcome"] = record.outcome
            if isinstance(record, Ended):
                self._ended = {"outcome": record.outcome, "result": of_result(record.result)}
                self._until = time.monotonic() + self._close_s
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=f"squall-tracker-{self.name}", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Waits for the last values to arrive, but not for long; then ends whatever still hangs. Safe to call twice."""
        if os.getpid() != self._process:  # a forked one, which has no such thread
            return
        thread, self._thread = self._thread, None
        if thread is not None:
            with self._changed:
                self._until = min(self._until, time.monotonic() + self._close_s)
                self._changed.notify()
            thread.join(max(self._until - time.monotonic(), 0.0))
            if thread.is_alive():
                self._give_up()
                thread.join(_KILLED_S)
        self._off = True
        if self._buffer.dropped:
            self._words.append(f"{self.name} is slow: {self._buffer.dropped:,} values did not go there")
            self._buffer.dropped = 0
        self._say()

    def _give_up(self) -> None:
        with self._changed:
            self._off = True
            self._words.append(f"{self.name} did not take its last values within {self._close_s:g} s")
            if self._child is not None:
                self._child.kill()

    def _say(self) -> None:
        while self._words:
            self._warn(self._words.pop(0))

    # -- the thread --------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        child: Child | None = None
        try:
            child = Child(self._module)
            with self._changed:
                self._child = child
                if self._off:
                    return
            self._keep(child.ask("start", **self._about)["id"])
            child.ask("config", values=dict(self._config))
            while points := self._next():
                child.ask("log", points=points)
            child.ask("end", step=self._step, **self._ended)
        except Exception as error:
            self._fail(error)
        finally:
            if child is not None:
                child.end()

    def _next(self) -> list[Sent]:
        """The next points, as soon as there are any; none: the run has ended."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._buffer) or self._until < math.inf)
            return self._buffer.take()

    def _fail(self, error: Exception) -> None:
        with self._changed:
            if self._off:  # ended by `close`
                return
            self._off = True
            self._buffer.clear()
            self._words.append(f"{self.name} is off: {error}; the run goes on without it")
        if self._log is not None and (text := getattr(error, "traceback", "")):
            with suppress(OSError):
                self._log.parent.mkdir(exist_ok=True)
                self._log.write_text(text, encoding="utf-8")
