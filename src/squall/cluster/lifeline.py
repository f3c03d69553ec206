"""Ties a rank's life to its launcher's: a launcher killed with SIGKILL must not leave ranks that train on.

torch's agent starts each rank in a session of its own and forwards the signals it can catch. It cannot forward
SIGKILL, and the ranks would run to their end; a resumed run would then be a second writer in one folder. Linux sends a
process a signal when its parent dies, if the process has asked for it (`prctl(2)`, PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Mapping

from squall.errors import RunError

LAUNCHER = "SQUALL_LAUNCHER_PID"
"""Environment variable of a rank: the process that started it."""

_PR_SET_PDEATHSIG = 1


def tie_to_launcher(environ: Mapping[str, str]) -> bool:
    """Asks the kernel to kill this process when the launcher named in the environment dies.

    The launcher may have died before the kernel was asked; then nobody would send the signal, so the parent is looked
    at once more afterwards.

    Returns:
        False where no launcher of ours started this process.

    Raises:
        RunError: the launcher is gone already.
    """
    launcher = environ.get(LAUNCHER)
    if launcher is None:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != int(launcher):
        raise RunError(
            "the launcher of this rank is gone",
            [("found", f"parent process {os.getppid()}, started by {launcher}"), ("to do", "start the job again")],
        )
    return True
