"""Keeps a run going: starts its processes again after one of them has died, or when another number is asked for.

    ranks end   killed, stuck, a connection lost     again from the newest checkpoint, one process fewer where a range
                                                     allows it, as often as --restarts says
                left to be another number            again with that number, whatever --restarts says
                an error, a mistake, a signal        that is the end: it would be the same again, or is meant

Each decision is told in one line. The run itself notices nothing: its processes find the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from squall.cli import voices
from squall.cli.processes import RanksFailed, Span
from squall.cli.states import steps_saved
from squall.errors import InputError
from squall.run import requests
from squall.run.folder import LOGS, RECORDS

if TYPE_CHECKING:
    from squall.engine.verdict import Outcome

DEFAULT = 3
"""Restarts."""

_DEATHS = ("killed", "stuck", "lost")
_FEWER_AFTER = ("killed", "stuck")  # a connection that was lost took no process with it


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run that processes of this machine work on.

    Arguments:
        begin: arguments of this interpreter that start it.
        resume: those that go on with it, once its folder holds records.
        folder: the run's.
        threads: of each process.
        span: the numbers of processes that were asked for; None: any.
        passes: the most processes that there is work for.
        restarts: how often it may go on after a death.
    """

    begin: Sequence[str]
    resume: Sequence[str]
    folder: Path
    threads: int
    span: Span | None = None
    passes: int | None = None
    restarts: int = DEFAULT


@dataclass(frozen=True)
class Again:
    """A decision to go on: with how many processes, and how many restarts that makes."""

    processes: int
    used: int


def after(outcome: Outcome, processes: int, used: int, job: Job, asked: int | None) -> Again | None:
    """What follows an outcome; None: nothing.

    Arguments:
        processes: that there were.
        used: restarts so far.
        asked: the number of processes for which they have left.
    """
    if asked is not None:
        return Again(_within(asked, job), used)
    if used >= job.restarts or outcome.cause not in _DEATHS:
        return None
    fewer = outcome.cause in _FEWER_AFTER and job.span is not None and job.span.least < processes
    return Again(processes - fewer, used + 1)


def run(job: Job, processes: int) -> int:
    """Works on a run until it ends; returns 0.

    Raises:
        RanksFailed: it ended otherwise, which has been said.
    """
    from squall.engine.outlets import LogFolder
    from squall.engine.spmd import run_ranks

    used = 0
    while True:
        arguments = job.resume if (job.folder / RECORDS).exists() else job.begin
        logs = LogFolder(job.folder / LOGS, after=job.folder / RECORDS)
        outcome = run_ranks(arguments, processes, threads=job.threads, logs=logs)
        if outcome.status == 0:
            return 0
        asked = _asked(job.folder) if outcome.status == requests.RESIZED else None
        again = after(outcome, processes, used, job, asked)
        if again is None:
            if text := _advised(outcome, job, used):
                voices.tell(text)
            raise RanksFailed(outcome.status, outcome.message)
        voices.tell(_line(outcome, again, used, job))
        processes, used = again.processes, again.used


def _asked(folder: Path) -> int | None:
    """How many processes somebody has asked for; the request is taken away."""
    request = requests.waiting(folder)
    if request is None or request.do != "resize" or request.processes < 1:
        return None
    requests.take_away(folder)
    return request.processes


def _within(number: int, job: Job) -> int:
    """The number nearest to a wanted one that the job allows."""
    if job.passes is not None:
        number = min(number, job.passes)
    if job.span is not None and job.span.is_range:
        number = min(max(number, job.span.least), job.span.most)
    return number


def _line(outcome: Outcome, again: Again, used: int, job: Job) -> str:
    what = "resized" if again.used == used else outcome.headline
    count = f" (restart {again.used} of {job.restarts})" if again.used > used else ""
    plural = "" if again.processes == 1 else "es"
    step = max(steps_saved(job.folder), default=0)
    return f"squall: {what}; going on from step {step:,} with {again.processes} process{plural}{count}"


def _advised(outcome: Outcome, job: Job, used: int) -> str:
    """The last message, and what can be done with what there is."""
    lines = [outcome.message] if outcome.message else []
    if outcome.cause in _DEATHS and used:
        lines.append(f"  restarts   {used} of {job.restarts} used")
    saved = steps_saved(job.folder)
    if saved and outcome.message and outcome.status != InputError.exit_status and outcome.cause != "left":
        lines.append(f"checkpoint of step {saved[0]:,} is there: squall resume {job.folder}")
    return "\n".join(lines)
