"""When the ranks of a job are told to end, and how hard. Pure: events and times in, signals to send out.

A rank that fails       the others lose a connection and end by themselves; then SIGTERM, then SIGKILL
A rank that leaves      (it was asked to, saved, and ends) the others are leaving too, and are given time to save
A signal to the launcher    goes to every rank once: they save, at a step that they agree on, and leave; then SIGKILL
A second one            SIGKILL at once

    failure at 0 s   ...  echo 1 s: SIGTERM  ...  failed 4 s: SIGKILL            the whole is over within 5 s
    signal  at 0 s   sent on                 ...  leave 120 s: SIGKILL
"""

from __future__ import annotations

import signal
from dataclasses import dataclass

from squall.engine.verdict import LEAVING, STOPPING, Exit

ABANDON = -1
"""In place of a signal: ranks that do not end even when killed are waited for no longer."""

_REAP_S = 10.0
_SAME_S = 1.0  # schedulers send a signal to a job's processes and again to the job; a hurried person has Ctrl-C


@dataclass(frozen=True, kw_only=True)
class Grace:
    """How long ranks have, in seconds.

    Arguments:
        echo: to fail by themselves after another has failed, before they are told to end.
        failed: until they are killed, after another has failed.
        leave: to save and leave.
    """

    echo: float = 1.0
    failed: float = 4.0
    leave: float = 120.0


class Watch:
    """The state of a job's ending.

    Arguments:
        processes: ranks that run.
        grace: how long they have.

    Attributes:
        running: ranks that have not ended.
        exits: ends, in order.
        asked: number of the signal that asked the launcher to stop; 0: none did.
        failed: a rank has failed.
        hurried: a signal has asked to end at once.
        killed: ranks that were sent SIGKILL.
    """

    def __init__(self, processes: int, grace: Grace) -> None:
        self.running = set(range(processes))
        self.exits: list[Exit] = []
        self.asked = 0
        self.failed = self.hurried = False
        self.killed: list[int] = []
        self._grace = grace
        self._told = False
        self._asked_at = 0.0
        self._plan: list[tuple[float, int]] = []  # times, ascending, and what is sent then

    def ended(self, rank: int, code: int, now: float) -> None:
        """A rank has ended: its exit status, or minus the number of the signal that killed it."""
        self.running.discard(rank)
        self.exits.append(Exit(rank, code, now, told=self._told))
        if code == 0 or self._told:
            return
        if code in LEAVING or (self.asked and code == -self.asked):
            self._sooner([(now + self._grace.leave, signal.SIGKILL)])
        else:
            self.failed = True
            self._sooner([(now + self._grace.echo, signal.SIGTERM), (now + self._grace.failed, signal.SIGKILL)])

    def came(self, number: int, now: float) -> int:
        """The launcher got a signal; returns the one to send to all ranks that run, or 0."""
        if number == self.asked and number != signal.SIGINT and now - self._asked_at < _SAME_S:
            return 0
        self._asked_at = now
        self.hurried = bool(self.asked) or self.failed or number not in STOPPING
        self.asked = self.asked or number
        if self.hurried:
            return self._send(signal.SIGKILL, now)
        self._sooner([(now + self._grace.leave, signal.SIGKILL)])
        return number

    def due(self, now: float) -> int:
        """The signal to send now to all ranks that run, or `ABANDON`; 0: nothing."""
        number = 0
        while self._plan and self._plan[0][0] <= now:
            number = self._plan.pop(0)[1]
        return self._send(number, now) if number else 0

    def patience(self, now: float) -> float | None:
        """Seconds until something is due; None: nothing is."""
        return max(self._plan[0][0] - now, 0.0) if self._plan else None

    def _sooner(self, plan: list[tuple[float, int]]) -> None:
        """Takes a plan that ends before the present one would."""
        if not self._plan or plan[-1][0] < self._plan[-1][0]:
            self._plan = plan

    def _send(self, number: int, now: float) -> int:
        self._told = True
        if number == signal.SIGKILL:
            self._plan = [(now + _REAP_S, ABANDON)]
            self.killed += sorted(self.running)
        elif number == ABANDON:
            for rank in sorted(self.running):
                self.ended(rank, -signal.SIGKILL, now)
        return number
