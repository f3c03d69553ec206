"""What ended a job of several ranks, from what they said and how each ended. Pure: facts in, an outcome out.

One rank's end makes the others fail, within milliseconds as connections close, or at their deadline when it hangs. The
person should see the one that explains the rest; the earliest of these does::

    an own error          said by a rank, and not the echo of another's end
    killed by a signal    and not by the launcher
    stuck                 others ran into their deadline waiting for it

and where there is none of them: ended without a word, left as it was asked to, lost a peer. SIGABRT, and an end without
a word, never outweigh an own error: native libraries abort a process that has lost a peer.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Literal

from squall.engine.report import Report
from squall.errors import InputError, Row, SquallError

Cause = Literal["finished", "failed", "killed", "stuck", "lost", "left"]

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""Signals that ask a job to save and leave."""

LEAVING = frozenset({os.EX_TEMPFAIL, *(128 + number for number in STOPPING)})
"""Exit statuses of a rank that left as it was asked to: by one of these signals, or to be started again."""

LAST_LINES = 5
"""Lines of a rank that are shown of what it wrote last."""

# as Python's faulthandler writes them: at a crash, or because the launcher asked
_DUMP = re.compile(r"Fatal Python error|(Current thread|Thread|Stack) .*\(most recent call first\)")
_OWN_THREAD = re.compile(r"(Current thread|Stack) .*\(most recent call first\)")
_FRAME = re.compile(r'\s*File "(.+)", line (\d+) (in .+)')

_STATES = {
    "T": "it is stopped: by SIGSTOP, or by a terminal",
    "t": "it is stopped: by a debugger",
    "D": "it hangs in the kernel: a disk, a network file system, a driver",
}


@dataclass(frozen=True)
class Outcome:
    """How a job of ranks ended.

    Arguments:
        status: exit status.
        message: the text that says why, to print once; nothing where there is nothing to say.
        cause: finished; failed (an error of its own); killed by a signal; stuck; lost a connection; left as asked.
        headline: the message's first line, without program and exit status.
    """

    status: int
    message: str = ""
    cause: Cause = "failed"
    headline: str = ""


@dataclass(frozen=True)
class Exit:
    """A rank's end, as its launcher saw it.

    Arguments:
        rank: whose.
        code: exit status; minus the signal's number where one killed it.
        seconds: when, on the clock of the reports.
        told: the launcher had told it to end, since another had failed.
    """

    rank: int
    code: int
    seconds: float
    told: bool = False


@dataclass(frozen=True)
class Facts:
    """What is known when all ranks have ended.

    Arguments:
        processes: ranks of the job.
        exits: in order.
        reports: what ranks said.
        states: of each rank that was there when the first failed, the kernel's letter for what it did.
        tails: the last lines that each rank wrote.
        logs: the files that hold all its lines.
        memory: what is known of a process killed for want of memory.
    """

    processes: int
    exits: Sequence[Exit]
    reports: Sequence[Report] = ()
    states: Mapping[int, str] = field(default_factory=dict)
    tails: Mapping[int, Sequence[str]] = field(default_factory=dict)
    logs: Mapping[int, Path] = field(default_factory=dict)
    memory: str = ""


def verdict(facts: Facts) -> Outcome:
    """Chooses what explains the end of a job."""
    if not any(ended.code for ended in facts.exits):
        return Outcome(0, cause="finished")
    reports = sorted(facts.reports, key=lambda report: report.seconds)
    echoes = [report for report in reports if report.lost_peer]
    own = sorted((report for report in reports if not report.lost_peer), key=lambda report: report.status in LEAVING)
    silent = _silent_ends(facts)
    causes = list(_causes(facts, own, echoes, silent))
    if causes:
        return min(causes, key=lambda cause: cause[0])[1]
    for ended in silent:
        if ended.code not in LEAVING:
            return _silent(facts, ended, echoes)
    if silent:
        return Outcome(silent[0].code, cause="left")
    if echoes:
        return _said(facts, echoes[0], "lost")
    return _silent(facts, next(ended for ended in facts.exits if ended.code), echoes)


def stopped(facts: Facts, number: int, killed: Sequence[int], grace_s: float | None) -> Outcome:
    """The end of a job whose launcher was asked to stop; nothing to say where the ranks left by themselves.

    Arguments:
        number: of the signal.
        killed: ranks that the launcher had to kill.
        grace_s: seconds that they had; None: none, at a second signal.
    """
    own = [report for report in facts.reports if not report.lost_peer]
    if any(report.status not in LEAVING for report in own):  # a rank could not save
        return replace(verdict(facts), cause="failed")  # whatever it was: a job that was asked to stop stays so
    if not any(ended.code for ended in facts.exits):
        return Outcome(0, cause="finished")
    status, name = 128 + number, _name(number)
    deaths = [ended for ended in _silent_ends(facts) if ended.code not in LEAVING and ended.code != -number]
    if deaths:  # whom the launcher had to kill then, it was because of that
        text = f"stopped by {name}; {_how(facts, deaths[0])}"
    elif killed and grace_s is not None and any(report.late for report in facts.reports):
        text = f"stopped by {name}; {verdict(facts).headline}"
    elif killed:
        ranks = ", ".join(map(str, sorted(killed)))
        why = "killed at once" if grace_s is None else f"killed: not gone within {grace_s:g} s"
        text = f"stopped by {name}; rank {ranks} of {facts.processes} {why}"
    elif all(ended.code in (0, status) for ended in facts.exits) and not own:
        text = ""  # the ranks have left by themselves, and rank 0 has said so
    else:
        text = f"stopped by {name}; all {facts.processes} ranks have ended"
    return Outcome(status, text and f"squall: {text}", "left", text)


def _causes(
    facts: Facts, own: list[Report], echoes: list[Report], silent: list[Exit]
) -> Iterator[tuple[float, Outcome]]:
    """What may explain the rest, each with its time."""
    for report in own[:1]:
        yield report.seconds, _said(facts, report, "left" if report.status in LEAVING else "failed")
    for ended in silent:
        if ended.code < 0 and not (own and ended.code == -signal.SIGABRT):
            yield ended.seconds, _silent(facts, ended, echoes)
    stuck = _stuck(facts, [report for report in echoes if report.late])
    if stuck is not None:
        waiting, rank = stuck
        yield waiting.seconds, _hangs(facts, waiting, rank)


def _stuck(facts: Facts, late: list[Report]) -> tuple[Report, int] | None:
    """Who waited in vain, and for whom: along the chain to one that waited for nobody."""
    if not late:
        return None
    waited = {report.rank: report for report in reversed(late)}
    at, seen = late[0], {late[0].rank}
    while at.peer is not None and at.peer in waited and at.peer not in seen:
        at = waited[at.peer]
        seen.add(at.rank)
    if at.peer is not None and at.peer not in seen:
        return at, at.peer
    said = {report.rank for report in facts.reports}
    silent = [ended.rank for ended in facts.exits if ended.told and ended.rank not in said]
    silent.sort(key=lambda rank: (facts.states.get(rank) not in _STATES, rank))
    return (late[0], silent[0]) if silent else None


def _said(facts: Facts, report: Report, cause: Cause) -> Outcome:
    lines = [report.message]
    others = facts.processes - sum(each.message == report.message for each in facts.reports)
    if others and report.status != InputError.exit_status and cause != "left":
        since = max(max(ended.seconds for ended in facts.exits) - report.seconds, 0)
        lines.append(f"  {others} other rank{'' if others == 1 else 's'} stopped in {since:.1f} s")
    headline = report.headline
    if cause == "lost":  # its own words say "this rank"
        peer = "a connection" if report.peer is None else f"its connection to rank {report.peer}"
        headline = f"rank {report.rank} of {facts.processes} lost {peer}"
    return Outcome(report.status, "\n".join([*lines, report.hint] if report.hint else lines), cause, headline)


def _silent_ends(facts: Facts) -> list[Exit]:
    """The ends that are no good ones, that the launcher has not told to, and of which the rank has said nothing."""
    said = {report.rank for report in facts.reports}
    return [ended for ended in facts.exits if ended.code and not ended.told and ended.rank not in said]


def _how(facts: Facts, ended: Exit) -> str:
    """A rank's end in words."""
    how = f"was killed by {_name(-ended.code)}" if ended.code < 0 else f"ended with exit status {ended.code}"
    return f"rank {ended.rank} of {facts.processes} {how}"


def _silent(facts: Facts, ended: Exit, echoes: list[Report]) -> Outcome:
    rows: list[Row] = []
    if ended.code == -signal.SIGKILL:
        often = ("often", "the machine ran out of memory: dmesg says so")
        rows.append(("found", facts.memory) if facts.memory else often)
    elif ended.code > 0:
        rows.append(("found", "it left no message here; look at what it printed itself"))
    rows += _lines(facts, ended.rank)
    rows += [(f"rank {echo.rank}", echo.headline) for echo in echoes[:1]]
    error = SquallError(_how(facts, ended), rows)
    error.exit_status = max(ended.code, 1)
    return _outcome(error, "killed" if ended.code < 0 else "failed")


def _hangs(facts: Facts, waiting: Report, rank: int) -> Outcome:
    state = _STATES.get(facts.states.get(rank, ""), "it is alive: its code takes longer, or waits for something else")
    rows: list[Row] = [("found", state), *_lines(facts, rank)]
    rows.append(("to do", "where it was only slow: a longer --timeout"))
    headline = f"rank {rank} of {facts.processes} is stuck: rank {waiting.rank} waited {waiting.waited}"
    return _outcome(SquallError(headline, rows), "stuck")


def _lines(facts: Facts, rank: int) -> list[Row]:
    """What a rank wrote last, where its interpreter says that it was, and where the rest is."""
    tail = list(facts.tails.get(rank, ()))
    rows = []
    dump = next((number for number, line in enumerate(tail) if _DUMP.match(line)), len(tail))
    if before := tail[:dump][-LAST_LINES:]:
        rows.append(("last lines", "\n".join(before)))
    at = next((number for number, line in enumerate(tail) if _OWN_THREAD.match(line)), len(tail))
    frames = [match.expand(r"\1:\2 \3") for match in takewhile(bool, map(_FRAME.match, tail[at + 1 :])) if match]
    if frames:
        rows.append(("it was at", "\n".join(frames[:LAST_LINES])))
    return rows + ([("log", str(facts.logs[rank]))] if rank in facts.logs else [])


def _outcome(error: SquallError, cause: Cause) -> Outcome:
    return Outcome(error.exit_status, error.render(), cause, error.headline)


def _name(number: int) -> str:
    """A signal's name; those for real-time use have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
