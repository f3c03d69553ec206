"""Ties processes' lives together: a launcher killed with SIGKILL must not leave ranks that train on.

A launcher starts each rank in a session of its own and forwards the signals it can catch. It cannot forward SIGKILL,
and the ranks would run to their end; a resumed run would then be a second writer in one folder. Linux sends a process a
signal when its parent dies, if the process has asked for it (`prctl(2)`, PR_SET_PDEATHSIG). A rank asks; and so does
each process that it forks, since the loaders of a rank that is killed would be as orphaned::

    launcher  <--tied--  rank  <--tied--  loader processes

The tie is to the parent's thread, so that only what the main thread forks is tied.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Mapping

from squall.errors import RunError

LAUNCHER = "SQUALL_LAUNCHER_PID"
"""Environment variable of a rank: the process that started it."""

_TORCHRUN = "TORCHELASTIC_RUN_ID"
_PR_SET_PDEATHSIG = 1
_tied: list[int] = []
"""This process and its main thread's identity, once it has tied those that it will fork."""


def has_launcher() -> bool:
    """Whether a launcher of Squall's has started this process."""
    return LAUNCHER in os.environ


def tie_to_launcher(environ: Mapping[str, str]) -> None:
    """Asks the kernel to kill this process when its launcher dies: ours, named in the environment, or torchrun.

    The launcher may have died before the kernel was asked; then nobody would send the signal, so the parent is looked
    at once more afterwards. torchrun does not give its number, and may have a shell between: the parent is then taken
    as it is. A process that neither has started is left alone.

    Raises:
        RunError: the launcher is gone already.
    """
    launcher = environ.get(LAUNCHER)
    if launcher is None:
        if _TORCHRUN in environ and not _ask_kernel():
            _tie_forks()
        return
    if error := _ask_kernel():
        raise OSError(error, "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != int(launcher):
        raise RunError(
            "the launcher of this rank is gone",
            [("found", f"parent process {os.getppid()}, started by {launcher}"), ("to do", "start the job again")],
        )
    _tie_forks()


def _ask_kernel() -> int:
    """Returns an error's number, or 0."""
    libc = ctypes.CDLL(None, use_errno=True)
    return ctypes.get_errno() or -1 if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) else 0


def _tie_forks() -> None:
    """From now on processes that this one forks ask as well; a second call changes nothing."""
    if not _tied:
        os.register_at_fork(after_in_child=_forked)
        _tied[:] = [os.getpid(), threading.main_thread().ident or 0]


def _forked() -> None:
    """In a process that was just forked. Its own children are its own affair: a daemon forks twice to be free."""
    if not _tied:
        return
    parent, main_thread = _tied
    _tied.clear()
    if threading.get_ident() == main_thread:
        _ask_kernel()
        if os.getppid() != parent:
            os._exit(1)
