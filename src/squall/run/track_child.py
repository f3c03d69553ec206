"""A process of its own for a tracker's client: what it does to its process, it does not do to the training.

Such clients start threads and services, register handlers for the interpreter's exit, change the environment, and wait
for servers, at times for ever. A thread that hangs in one cannot be ended; a process can. It is started with the
tracker's first word and ended, whatever it is doing, by `Child.end`. Both ends speak over one socket, a request and
its answer at a time, in JSON::

    {"do": "start", "id": null, "name": ...}      -> {"id": "7f..."}        tracker's own name of the run
    {"do": "config", "values": {...}}             -> {}
    {"do": "log", "points": [[step, time, {...}], ...]}
    {"do": "end", "outcome": "finished", ...}     -> {}                     everything has arrived
    anything                                      -> {"error": "...", "traceback": "..."}

The process has a session of its own: Ctrl-C in a terminal and a scheduler's signals do not reach it, because what they
end is the training, which then has a last word to say. It leaves when the training's process is gone.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, NoReturn, Protocol

_LOOK_S = 0.5
_NICE = 5
_LONGEST = 240


class Client(Protocol):
    """What a tracker's own module offers, as its class `Client` without arguments."""

    def start(self, known: str | None, name: str, start_step: int, folder: str | None) -> str:
        """Begins a run, or goes on with the one that `known` names; returns what names it."""

    def config(self, values: Mapping[str, Any]) -> None:
        """Keeps what the run is configured with."""

    def log(self, points: Sequence[tuple[int, float, Mapping[str, float]]]) -> None:
        """Keeps numbers: (step, seconds since 1970, values by name)."""

    def end(self, outcome: str, step: int, result: Mapping[str, Any]) -> None:
        """Says how the run ended; returns when everything has arrived."""


class ChildError(Exception):
    """The tracker failed, in its own words; `traceback` is its process's, for a log."""

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback


class Child:
    """The training's end: a running process of a tracker.

    Arguments:
        module: that defines `Client`; imported there.
    """

    def __init__(self, module: str) -> None:
        self._talk, theirs = Pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, module, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except BaseException:
            self._talk.close()
            raise
        finally:
            theirs.close()

    def ask(self, do: str, **about: Any) -> dict[str, Any]:
        """Asks for something and waits for the answer, however long it takes; `kill` ends the wait.

        Raises:
            ChildError: it failed, or its process is gone.
        """
        try:
            self._talk.send_bytes(json.dumps({"do": do, **about}).encode())
            answer: dict[str, Any] = json.loads(self._talk.recv_bytes())
        except (OSError, EOFError) as error:
            raise ChildError(f"its process ended {self._how()}") from error
        if "error" in answer:
            raise ChildError(answer["error"], answer["traceback"])
        return answer

    def _how(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            status = self._process.wait(_LOOK_S)
            return f"by {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
        return "the conversation"

    def kill(self) -> None:
        """Ends the process at once, and those that it started; safe from any thread."""
        for pid in [*_descendants(self._process.pid), self._process.pid] if self._process.poll() is None else []:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def end(self) -> None:
        """Ends the process and gives everything back."""
        self.kill()
        self._process.wait()
        self._talk.close()


def _descendants(pid: int) -> list[int]:
    """Processes below one, the lowest first: a client's service may have left for a session of its own."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # a thread that has just ended; the children of the others count all the same
            for child in children.read_text().split():
                found += [*_descendants(int(child)), int(child)]
    return found


# -- the other end ---------------------------------------------------------------------------------------------


def main() -> None:
    """The process: `python -m squall.run.track_child MODULE DESCRIPTOR PARENT`."""
    module, descriptor, parent = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    os.nice(_NICE)  # training comes first
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    try:
        serve(Connection(descriptor), lambda: importlib.import_module(module).Client())
    finally:
        _leave()


def serve(talk: Connection, make: Callable[[], Client]) -> None:
    """Answers until the run's end, an error, or until nobody asks any more."""
    client: Client | None = None
    more = True
    while more:
        try:
            request = json.loads(talk.recv_bytes())
        except (OSError, EOFError):
            return
        do = request.pop("do")
        try:
            client = client or make()
            found = getattr(client, do)(**request)
            answer = {"id": found} if do == "start" else {}
        except Exception as error:
            answer = {"error": headline(error), "traceback": clean(traceback.format_exc())}
        more = do != "end" and "error" not in answer
        talk.send_bytes(json.dumps(answer).encode())


def headline(error: BaseException) -> str:
    """An error in one line, short, without what must not be shown."""
    first = next(iter(str(error).strip().splitlines()), "")
    text = clean(f"{type(error).__name__}: {first}".removesuffix(": "))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def clean(text: str) -> str:
    """A text without the names and passwords of its addresses (https://name:password@host)."""
    return re.sub(r"(?<=://)[^/?#\s]+@", "", text)  # up to the last @: some passwords hold one


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    _leave()


def _leave() -> NoReturn:
    """At once, with what the client started: its handlers for an exit might wait."""
    for pid in _descendants(os.getpid()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    main()
