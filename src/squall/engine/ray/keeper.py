"""A small process that clears away what a session of Ray leaves, also when its driver was killed.

Killed with SIGKILL, a driver can end nothing; Ray's own processes notice it by and by and are gone after a minute, and
its folder stays for good. So a keeper stands beside the driver: without torch or Ray, in a session of its own, deaf to
the signals that ask a job to leave. It holds a descriptor of the driver, and the end of a pipe::

    driver   starts its keeper     starts Ray (mark in its environment)    ...    stops Ray     a word, and waits
    keeper   watches the driver -------------------------------------------------------------- clears, ends
                                   the driver is gone without a word: clears at once

To clear is to end whatever has the mark and to remove the folder. The mark is a variable of the environment, which
Ray's processes inherit from each other, and may not write their titles over (`leftovers`); the driver has it not, since
others see its environment as it was when it was started. It is the keeper that clears in every case: a second Ctrl-C
cannot interrupt it.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from squall.engine.leftovers import sweep
from squall.engine.ray.patience import unhurried
from squall.errors import RunError

MARK = "SQUALL_RAY_SESSION"
"""The variable that marks the processes of a session."""

_DEAF = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_LEAVE_S = 1.0  # that Ray's processes have to end by themselves after Ray was stopped
_CLEARS_S = 15.0


def clear(session: str, folder: Path, patience_s: float) -> None:
    """Ends the processes of a session and removes its folder.

    Arguments:
        session: the value of their mark.
        patience_s: how long they have to end by themselves.
    """
    sweep(MARK, session, patience_s)
    shutil.rmtree(folder, ignore_errors=True)


class Keeper:
    """A context in which a session is watched over; at its end the session is cleared, whatever has happened.

    Arguments:
        session: the value of its mark.
        folder: what is removed.
    """

    def __init__(self, session: str, folder: Path) -> None:
        self._session, self._folder = session, folder

    def __enter__(self) -> Keeper:
        given = {name: value for name, value in os.environ.items() if name != MARK and not name.startswith("RAY_")}
        given["PYTHONPATH"] = python_path(given)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(os.getpid()), self._session, str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=given,
            cwd="/",
            start_new_session=True,
        )
        assert self._process.stdout is not None
        with self._process.stdout as said:
            ready = said.readline()  # it watches
        if not ready:
            self._end()
            raise RunError("the process that clears up after Ray could not be started")
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        assert self._process.stdin is not None
        with suppress(OSError), self._process.stdin as word:  # it may have been killed
            word.write(b".")  # and not only the end of the pipe: processes forked meanwhile have that open, too
        unhurried(self._wait)

    def _wait(self) -> None:
        try:
            cleared = self._process.wait(_CLEARS_S) == 0
        except subprocess.TimeoutExpired:
            cleared = False
        if not cleared:
            self._process.kill()
            self._process.wait()
            clear(self._session, self._folder, _LEAVE_S)


def python_path(environ: Mapping[str, str]) -> str:
    """A PYTHONPATH under which other processes import this very squall."""
    ours = str(Path(__file__).parents[3])
    return os.pathsep.join(filter(None, [ours, environ.get("PYTHONPATH")]))


def main(driver: int, session: str, folder: Path) -> None:
    """Waits for the driver's word or its end, and clears."""
    for number in _DEAF:
        signal.signal(number, signal.SIG_IGN)
    patience_s = 0.0
    if os.getppid() == driver:  # a process that has another parent now had one that died
        gone = os.pidfd_open(driver)  # readable when the process has ended
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        if gone not in select.select([gone, 0], [], [])[0]:
            patience_s = _LEAVE_S
    clear(session, folder, patience_s)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
