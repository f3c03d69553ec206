"""Signals that ask a run to leave: the first is noted; Ctrl-C twice, or a later second one, ends the process at once.

A scheduler that preempts a job sends SIGTERM, a person types Ctrl-C, and both want the work kept. A handler that saved
then and there would find the state in the middle of an update, and other ranks in another step. So it only takes a
note; the ranks tell each other with the sums of the step, save after the same one, and leave. Schedulers repeat SIGTERM
within milliseconds, and mean one; a person who types Ctrl-C twice means it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

LEAVING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)

_ONE_S = 5.0
"""Signals that come together are one."""


class Signals:
    """What this process was asked for.

    Attributes:
        noted: number of the first signal that came; 0: none.
    """

    def __init__(self) -> None:
        self.noted = 0
        self.deaf = False  # on the way out: a launcher that ends the others must not hurry us
        self._before: dict[int, Any] = {}
        self._process = os.getpid()
        self._at = 0.0

    def listen(self) -> None:
        """From now on takes notes; only a process's main thread can, in others nothing changes."""
        if threading.current_thread() is not threading.main_thread() or self._before:
            return
        for number in LEAVING:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # nohup; C's, which cannot be given back
                self._before[number] = signal.signal(number, self._note)

    def close(self) -> None:
        """Gives the handlers back that were there before."""
        before, self._before = self._before, {}
        for number, handler in before.items():
            if signal.getsignal(number) == self._note:
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a loader process, forked after `listen`, just ends
            self._pass_on(number, frame)
        elif not self.noted:
            self.noted, self._at = number, time.monotonic()
        elif number == signal.SIGINT or not (self.deaf or time.monotonic() - self._at < _ONE_S):
            self._pass_on(number, frame)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """What would have happened without us."""
        before = self._before.get(number, signal.SIG_DFL)
        if callable(before):
            before(number, frame)
            return
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
