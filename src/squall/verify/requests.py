"""Ctrl-C, SIGTERM and SIGHUP while a trial runs: each breaks it off, and none the putting back of the user's files.

with requests() as asked:          what comes is noted
    with asked.heard():            and breaks this off, once
        ...
    ...                            here it waits
                                   now it is raised again, and does what it would have done
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _BrokenOffError(BaseException):
    """Leaves what may be broken off."""


class Requests:
    """Those that have come."""

    def __init__(self) -> None:
        self.came: list[int] = []
        self._hears = False

    @contextmanager
    def heard(self) -> Iterator[None]:
        """What is in here is broken off by a request, also by one that has come already."""
        self._hears = True
        try:
            if self.came:
                raise _BrokenOffError
            yield
        finally:
            self._hears = False

    def note(self, number: int, frame: object) -> None:
        """The signals' handler."""
        self.came.append(number)
        if self._hears:
            self._hears = False  # before anything else can come
            raise _BrokenOffError


@contextmanager
def requests() -> Iterator[Requests]:
    """Holds requests back, but for what is `heard`; those that are ignored stay so.

    Outside of the main thread, which alone hears of signals, it does nothing.
    """
    asked = Requests()
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in _NUMBERS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, asked.note)
    try:
        yield asked
    except _BrokenOffError:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked.came:
        signal.raise_signal(asked.came[0])
        raise KeyboardInterrupt  # whose handler was content: what was broken off has no result
