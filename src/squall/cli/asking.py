"""Asks a run to stop or to change its processes, and waits until it has.

    leave the request      the run looks once a second, saves after a step that its ranks agree on, and leaves
    wait for the lock      rank 0 gives it back when everything is written
    say what came of it    from the folder, as anybody else would see it

Processes that begin to work on a run forget what was asked of those before them, so an old request stops no resume; one
that they forget though somebody still waits is left again. A batch job learns that a person, and no preemption, ended
its run, and that it is not to come again: the file that says whose job the run is has gone (`batch.py`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from squall.cli import states, tails
from squall.cli.overview import progress, update, was, word
from squall.cli.states import State
from squall.errors import InputError, RunError
from squall.report.folder import held
from squall.run import requests
from squall.run.folder import RECIPE, RECORDS, SESSIONS
from squall.run.requests import Request
from squall.units import count

_POLL_S = 0.2
_BEGINS_S = 10.0
_STARTS_AGAIN_S = 60.0  # ranks load torch, find the checkpoint and meet


@dataclass(frozen=True)
class Answer:
    """What came of a request: the run as it stands now, and a text for a person."""

    run: State
    text: str


def stop(folder: Path, runs: Path, *, wait_s: float | None) -> Answer:
    """Asks a run to save and leave.

    Arguments:
        folder: the run's.
        runs: the folder that it was looked for in.
        wait_s: seconds to wait until it has left; None: not at all.

    Raises:
        InputError: it does not run, and is neither finished nor stopped.
        RunError: it has not left in time, or left without saving.
    """
    run, name = states.look(folder), word(folder, runs)
    if not run.running:
        return _not_running(run, name)
    with requested(folder, Request("stop")) as asked:
        if wait_s is None:
            return Answer(run, f"{name} is asked to save and stop      squall runs show {name}")

        def left(now: State) -> bool:
            if now.running:
                asked.renew()
            return not now.running

        ended = wait(folder, f"{name} saves and stops", wait_s, left)
    if ended is None:
        raise late(name, wait_s)
    return Answer(ended, _left(ended, name))


def resize(folder: Path, runs: Path, processes: int, *, wait_s: float | None) -> Answer:
    """Asks a run to go on with another number of processes.

    Raises:
        InputError: it does not run; a step has fewer passes than that.
        RunError: it did not go on in time.
    """
    run, name = begun(folder), word(folder, runs)
    if run.replicated:
        rows = [("rule", "replicas and shards are its processes; replicas may join and leave while it runs")]
        to_do = f"squall runs resize {name} --replicas {processes}"
        raise InputError(f"--processes {processes} of a run with strategy={run.strategy}", [*rows, ("to do", to_do)])
    if not run.running:
        again = f"squall resume {name} --processes {processes}"
        rows = [("found", f"it {was(run)}"), *([("to do", again)] if run.resumable else [])]
        raise InputError(f"{name} is not running", rows)
    if run.processes == processes:
        return Answer(run, f"{name} has {_processes(processes)} already")
    if run.job:  # its ranks are those of its job
        rows = [("found", f"job {run.job} has {_processes(run.processes or 0)}")]
        to_do = f"squall runs stop {name}, then submit it again with the same --out"
        raise InputError(f"{name} cannot change its processes", [*rows, ("to do", to_do)])
    _check_passes(folder, processes)
    before = _session(folder)
    if before.get("launched") is False:
        rows = [("found", "squall train --processes P did not start it, so nobody would start it again")]
        to_do = f"squall runs stop {name}, then start it with {_processes(processes)}"
        raise InputError(f"{name} cannot change its processes", [*rows, ("to do", to_do)])
    with requested(folder, Request("resize", processes)):
        if wait_s is None:
            return Answer(run, f"{name} is asked to go on with {_processes(processes)}      squall runs show {name}")
        changed = wait(folder, f"{name} changes to {_processes(processes)}", wait_s, _Changed(folder, before))
    if changed is None:
        raise late(name, wait_s)
    if changed.running and changed.processes == processes:
        start = tails.whole(_session(folder).get("start_step")) or 0
        return Answer(changed, f"{name} goes on from step {count(start)} with {_processes(processes)}")
    if changed.state == "finished":
        return Answer(changed, f"{name} finished before it looked at the request")
    if changed.running:  # the range of --processes bounds them; or ranks were killed just then, and started again
        found, to_do = f"it goes on with {_processes(changed.processes or 0)}", f"squall runs show {name}"
    else:
        found, to_do = f"{changed.state} at {progress(changed)}", f"squall resume {name} --processes {processes}"
    raise RunError(f"{name} does not go on with {_processes(processes)}", [("found", found), ("to do", to_do)])


def begun(folder: Path) -> State:
    """A run; one that has just taken its folder's lock has said who works on it, and forgotten older requests."""
    end = time.monotonic() + _BEGINS_S
    while True:
        run = states.look(folder)
        last = next(iter(tails.last(folder / SESSIONS, "session", "session_ended")), "")  # the newest is found first
        if not run.running or last == "session" or time.monotonic() > end:
            return states.look(folder) if run.running else run
        time.sleep(_POLL_S)


class _Changed:
    """Whether other processes work on a run than before, or none has come for long."""

    def __init__(self, folder: Path, before: tails.Values) -> None:
        self._folder, self._before, self._left_at = folder, before, 0.0

    def __call__(self, now: State) -> bool:
        if now.running:
            self._left_at = 0.0
            return _session(self._folder) != self._before
        self._left_at = self._left_at or time.monotonic()
        return now.state == "finished" or time.monotonic() - self._left_at > _STARTS_AGAIN_S


class Asked:
    """A request that was left in a run's folder."""

    def __init__(self, folder: Path, request: Request) -> None:
        self._folder, self._request = folder, request
        self._leave()

    def renew(self) -> None:
        """Leaves it again if other processes have begun since, which has made them forget it."""
        if _session(self._folder) != self._session and requests.waiting(self._folder) is None:
            self._leave()

    def withdraw(self) -> None:
        """Takes it away, if nobody has left another."""
        if _mark(self._folder) == self._mark:
            requests.take_away(self._folder)

    def _leave(self) -> None:
        self._session = _session(self._folder)
        try:
            requests.ask(self._folder, self._request)
            if self._request.do == "stop":
                (self._folder / states.LIVE_JOB).unlink(missing_ok=True)
        except OSError as error:
            found = error.strerror or str(error)
            rows = [
                ("found", found),
                ("rule", "a run is asked by a file in its folder"),
                ("to do", "make room there, or ask as the user whose run it is"),
            ]
            raise InputError(f"the run folder {self._folder} cannot be written", rows) from error
        self._mark = _mark(self._folder)


def _mark(folder: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        found = (folder / requests.FILE).stat()
        return found.st_ino, found.st_mtime_ns
    return None


@contextmanager
def requested(folder: Path, request: Request) -> Iterator[Asked]:
    """Leaves a request; takes it away again at the end where the run has ended by something else."""
    asked = Asked(folder, request)
    yield asked
    if not held(folder):
        asked.withdraw()


def wait(folder: Path, doing: str, wait_s: float, done: Callable[[State], bool]) -> State | None:
    """Looks at a run until it is as wanted; None where the time is over. Ctrl-C ends the waiting, not the request."""
    end = time.monotonic() + wait_s
    with _shown(doing) as tell:
        while True:
            now = states.look(folder)
            if done(now):
                return now
            if time.monotonic() > end:
                return None
            tell(f"{doing}: {progress(now)}")
            time.sleep(_POLL_S)


@contextmanager
def _shown(doing: str) -> Iterator[Callable[[str], None]]:
    """A line on a terminal's standard error that moves while we wait; elsewhere one that does not."""
    if not sys.stderr.isatty():
        print(f"{doing} ...", file=sys.stderr, flush=True)
        yield lambda text: None
        return
    from rich.console import Console

    with Console(stderr=True, highlight=False).status(doing) as status:
        yield status.update


def _left(run: State, name: str) -> str:
    if run.state == "finished":
        return f"{name} finished before it looked at the request: {progress(run)}"
    if run.state == "stopped" and run.checkpoint is None:
        return f"{name} stopped at {progress(run)}; it has no checkpoint to go on from"
    if run.state != "stopped" or run.checkpoint is None:
        rows = [("found", run.why)] if run.why else []
        rows += [("to do", f"squall resume {name}: from {update(run)} {run.checkpoint}")] if run.resumable else []
        raise RunError(f"{name} {was(run)} at {progress(run)} instead of stopping", rows)
    saved = f"saved at {update(run)} {count(run.checkpoint)}"
    return f"{name} stopped at {progress(run)}, {saved}      squall resume {name}"


def _not_running(run: State, name: str) -> Answer:
    if run.job:
        found = "waits" if run.state == "submitted" else f"it {was(run)} at {progress(run)}, and waits to come again"
        rows = [("found", f"{found} as job {run.job}"), ("to do", f"scancel {run.job}")]
        raise InputError(f"{name} is not running", rows)
    if run.state in ("finished", "stopped"):
        then = f"      squall resume {name}" if run.resumable else ""
        return Answer(run, f"{name} is not running: it {run.state} at {progress(run)}{then}")
    to_do = [("to do", f"squall resume {name}")] if run.resumable else []
    raise InputError(f"{name} is not running", [("found", f"it {was(run)} at {progress(run)}"), *to_do])


def late(name: str, wait_s: float) -> RunError:
    """What is said of a run that has not followed a request in time."""
    return RunError(
        f"{name} still runs after {wait_s:g} s",
        [
            ("found", "the request stays; a run looks for one between its steps"),
            ("to do", f"squall runs show {name}, and a longer --timeout"),
        ],
    )


def _check_passes(folder: Path, processes: int) -> None:
    """Refuses more processes than the recipe's steps have passes, before the run leaves for nothing."""
    from squall.cli.processes import check_passes
    from squall.cli.sizes import num_passes
    from squall.recipe import load

    if not (folder / RECIPE).is_file():
        return
    recipe, started = load(folder / RECIPE), tails.first(folder / RECORDS)
    check_passes(processes, recipe, num_passes(recipe, tails.whole(started.get("num_samples"))))


def _session(folder: Path) -> tails.Values:
    return tails.last(folder / SESSIONS, "session").get("session", {})


def _processes(number: int) -> str:
    return f"{count(number)} process{'' if number == 1 else 'es'}"
