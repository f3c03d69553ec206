"""The processes below this one: tied to it, adopted when they are orphaned, found, and ended until none is left.

Linux gives the orphans of a subreaper's descendants to the subreaper (`prctl(2)`, PR_SET_CHILD_SUBREAPER). So a process
below cannot leave by a double fork or a session of its own, and "no child left" means that nothing is left at all.
"""

from __future__ import annotations

import ctypes
import math
import os
import select
import shlex
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_TRACKER = "multiprocessing.resource_tracker"
_TRACKER_S = 1.0
_LOOK_S = 0.05  # at most, between looks: a process that forks has children that no look has seen


def adopt_orphans() -> None:
    """From now on this process is the parent of what its descendants leave behind."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def tie_to(parent: int) -> None:
    """This process, forked by the main thread of `parent`, is killed when that dies; if it has, this one ends now."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def below(pid: int) -> list[int]:
    """The living descendants of a process, parents before their children."""
    children: dict[int, list[int]] = {}
    ended = set()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):  # gone
                state, parent = Path(entry.path, "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
                children.setdefault(int(parent), []).append(int(entry.name))
                if state in "ZX":
                    ended.add(int(entry.name))
    found = [pid]
    for each in found:
        found += children.get(each, ())
    return [each for each in found[1:] if each not in ended]


def command(pid: int) -> str:
    """The command line of a process as a shell would read it; nothing where it is gone."""
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0")
        return shlex.join(words.split("\0")) if words else ""
    return ""


def is_tracker(pid: int) -> bool:
    """Whether it is Python's resource tracker: it removes others' shared memory when they are gone, then ends."""
    return _TRACKER in command(pid)


def send(pids: Collection[int], number: int) -> None:
    """A signal to each that still lives."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def reap() -> Iterator[tuple[int, int]]:
    """Children that have ended, with what `waitpid` says of them."""
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            yield pid, status


def childless() -> bool:
    """Takes leave of the children that have ended; says whether none is left, which means no descendant either."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


def wait_for_one(pids: Collection[int], until: float, *readable: int) -> None:
    """Returns when one of the processes has ended, a descriptor can be read, or the time has come."""
    with ExitStack() as stack:
        poll = select.poll()
        for fd in readable:
            poll.register(fd, select.POLLIN)
        for pid in pids:
            try:
                fd = os.pidfd_open(pid)  # readable once the process has ended
            except OSError:
                return
            stack.callback(os.close, fd)
            poll.register(fd, select.POLLIN)
        poll.poll(None if until == math.inf else math.ceil(max(until - time.monotonic(), 0.0) * 1000.0))


def wait_for_all(patience_s: float) -> list[int]:
    """Waits for the processes below to end by themselves; returns those that have not."""
    end = time.monotonic() + patience_s
    while True:
        if childless():
            return []
        left = below(os.getpid())
        if (now := time.monotonic()) >= end:
            return left
        wait_for_one(left, min(now + _LOOK_S, end))


def end_all(patience_s: float = 5.0) -> None:
    """Kills what is below this process, again and again, until nothing is; trackers get a moment to do their work."""
    begin = time.monotonic()
    while (now := time.monotonic()) < begin + patience_s:
        if childless():
            return
        left = below(os.getpid())
        victims = [pid for pid in left if not is_tracker(pid)]
        if not victims and now > begin + _TRACKER_S:
            victims = left
        send(victims, signal.SIGKILL)
        wait_for_one(left, now + _LOOK_S)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, int(value), 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option})")
