"""A virtual clock and the coroutines that wait on it: a heap of events and a trampoline, no asyncio.

Time does not pass, it is jumped over: the earliest event happens, the coroutines that waited for it go on until each
waits again, then the next event happens. Events of the same moment happen in a seeded random order, so that nothing
can rely on one; everything else is deterministic, and the same seed gives the same course, event by event.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from typing import Any


class Future:
    """Something that will have a value or an error; awaiting it waits for that."""

    __slots__ = ("_callbacks", "done", "error", "value")

    def __init__(self) -> None:
        self.done = False
        self.value: Any = None
        self.error: BaseException | None = None
        self._callbacks: list[Callable[[], None]] = []

    def resolve(self, value: Any = None, error: BaseException | None = None) -> None:
        """Settles it; only the first time counts."""
        if self.done:
            return
        self.done, self.value, self.error = True, value, error
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def keep(self) -> None:
        """Settles it without a value."""
        self.resolve()

    def then(self, callback: Callable[[], None]) -> None:
        """Calls back when it is settled, at once if it is."""
        if self.done:
            callback()
        else:
            self._callbacks.append(callback)

    def __await__(self) -> Generator[Future, None, Any]:
        if not self.done:
            yield self
        if self.error is not None:
            raise self.error
        return self.value


class Clock:
    """Virtual time, the events to come and the coroutines that are ready to go on.

    Arguments:
        seed: of the order of events that happen at the same moment.
        began: where it begins.
    """

    def __init__(self, seed: int, began: float = 0.0) -> None:
        self.now = began
        self.events = 0
        self._heap: list[tuple[float, float, int, Callable[[], None]]] = []
        self._ready: deque[Callable[[], None]] = deque()
        self._order = random.Random(seed)
        self._count = 0
        self._patience: dict[float, _Patience] = {}

    def at(self, time: float, event: Callable[[], None]) -> None:
        """Something that happens at a time, not before now."""
        self._count += 1
        heapq.heappush(self._heap, (max(time, self.now), self._order.random(), self._count, event))

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        """Something that happens so many seconds from now."""
        self.at(self.now + seconds, event)

    def soon(self, step: Callable[[], None]) -> None:
        """Something that happens now, after what is happening."""
        self._ready.append(step)

    def expire(self, seconds: float, future: Future, error: BaseException) -> None:
        """Settles a future by an error if it is still open after so many seconds.

        Most are settled long before: those of equal patience stand in one queue, of which only the first is an event.
        """
        self._patience.setdefault(seconds, _Patience(self, seconds)).add(future, error)

    def advance(self) -> bool:
        """Lets the next event happen and everything that follows from it at once; False where there is none."""
        if not self._ready:
            if not self._heap:
                return False
            self.now, _, _, event = heapq.heappop(self._heap)
            self.events += 1
            event()
        while self._ready:
            self._ready.popleft()()
        return True


class _Patience:
    """Futures that are given the same time."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock, self._seconds = clock, seconds
        self._queue: deque[tuple[float, Future, BaseException]] = deque()
        self._armed = False

    def add(self, future: Future, error: BaseException) -> None:
        queue = self._queue
        while queue and queue[0][1].done:
            queue.popleft()
        queue.append((self._clock.now + self._seconds, future, error))
        self._arm()

    def _arm(self) -> None:
        if self._queue and not self._armed:
            self._armed = True
            self._clock.at(self._queue[0][0], self._over)

    def _over(self) -> None:
        self._armed = False
        while self._queue and (self._queue[0][1].done or self._queue[0][0] <= self._clock.now):
            _, future, error = self._queue.popleft()
            future.resolve(error=error)
        self._arm()


class Task(Future):
    """A coroutine under way.

    Arguments:
        clock: which it waits on.
        coroutine: of a role.
        failed: called with the task if it ends with an error that nobody awaits.
    """

    __slots__ = ("_awaited", "_clock", "_coroutine", "_failed", "ended")

    def __init__(self, clock: Clock, coroutine: Coroutine[Any, Any, Any], failed: Callable[[Task], None]) -> None:
        super().__init__()
        self._clock, self._coroutine, self._failed = clock, coroutine, failed
        self.ended = self._awaited = False
        clock.soon(self._go_on)

    def __await__(self) -> Generator[Future, None, Any]:
        self._awaited = True
        return super().__await__()

    def end(self) -> None:
        """Ends it where it stands, as a killed process would: nothing of it runs any more."""
        self.ended = True
        with suppress(RuntimeError, ValueError):  # it is the one that is running: to its next wait and no further
            self._coroutine.close()

    def _go_on(self) -> None:
        if self.ended:
            return
        try:
            waits_for = self._coroutine.send(None)
        except StopIteration as stop:
            self.resolve(stop.value)
        except Exception as error:
            self.resolve(error=error)
            if not self._awaited and not self.ended:
                self._failed(self)
        else:
            waits_for.then(lambda: self._clock.soon(self._go_on))
