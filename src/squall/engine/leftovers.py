"""Processes that ranks have left behind, found by a mark in their environment, and ended.

A rank that is killed cannot end the processes it has started: loaders, trackers, whatever the user's code began. They
go to other parents, and may be in sessions of their own. But each inherits its environment, and in it the value of a
variable that only one launch has. A program that gives itself a title may write it over that environment, as
`setproctitle` does: whoever sets a mark sets `TITLES` too.

One kind is let end by itself: Python's resource trackers remove named semaphores and shared memory when those who used
them are gone, which is why they are ended last.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

TITLES = {"SPT_NOENV": "1"}
"""Makes `setproctitle` leave a process's environment where others see it."""

_POLL_S = 0.02
_REAP_S = 2.0
_TRACKER_S = 2.0  # that resource trackers have, after the others
_TRACKER = b"multiprocessing.resource_tracker"


def sweep(name: str, value: str, patience_s: float) -> None:
    """Ends all processes in whose environment a variable has a value; this one is left out.

    Arguments:
        patience_s: how long they have to end by themselves.
    """
    mark = f"{name}={value}".encode()
    _end(lambda: [pid for pid in marked(mark) if not _is_tracker(pid)], patience_s)
    _end(lambda: marked(mark), _TRACKER_S)


def marked(mark: bytes) -> list[int]:
    """Processes, other than this one, that have ``NAME=value`` in their environment."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):  # of another user, or gone; of one that has ended it is empty
                if mark in Path(entry.path, "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def _is_tracker(pid: int) -> bool:
    with suppress(OSError):
        return _TRACKER in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _end(find: Callable[[], list[int]], patience_s: float) -> None:
    """Waits until none is found, and kills those that remain."""
    end = time.monotonic() + patience_s
    while (found := find()) and time.monotonic() < end:
        time.sleep(_POLL_S)
    end = time.monotonic() + _REAP_S
    while found and time.monotonic() < end:  # one that was just being started may come late
        for pid in found:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_S)
        found = find()
