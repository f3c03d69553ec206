"""Which of several ranks' errors the person should see: one, the first that is not the echo of another.

When a rank fails, the others lose a connection within milliseconds and fail as well. Each rank appends its error to a
file in the launcher's memory; the launcher reads it when all have stopped, and shows the error that explains the rest::

    own error, earliest first  >  killed by a signal, or ended without a word  >  lost a peer, earliest first
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from squall.errors import InputError, Row, SquallError, UserCodeError

REPORTS = "SQUALL_REPORTS"
"""Environment variable of a rank: the file that takes its error."""

_LOST = ("PeerLostError", "PeerMissingError")
_LOST_WORDS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "failed to recv, got 0 bytes",
    "Timed out waiting",
    "Wait timeout",
    "wait timeout after",
    "Application timeout caused pair closure",
    "NCCL communicator was aborted",
    "remote process exited",
)


@dataclass(frozen=True)
class Report:
    """What one rank said before it ended.

    Arguments:
        rank: whose it is.
        status: the exit status it asks for.
        headline: the error in one line.
        message: rendered text, without its last line of advice.
        hint: that line, or nothing.
        lost_peer: another rank's end was the reason.
        seconds: when, on this machine's monotonic clock.
    """

    rank: int
    status: int
    headline: str
    message: str
    hint: str
    lost_peer: bool
    seconds: float


class Reports:
    """The file that takes the ranks' errors: anonymous memory, so nothing is left behind however the launcher ends.

    Attributes:
        path: under which the ranks open it, as long as this process lives.
    """

    def __init__(self) -> None:
        self._fd = os.memfd_create("squall-reports", os.MFD_CLOEXEC)
        self.path = f"/proc/{os.getpid()}/fd/{self._fd}"

    def read(self) -> list[Report]:
        """All reports in the order of writing; the torn one of a rank killed while writing is left out."""
        found = []
        for line in Path(self.path).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                found.append(Report(**json.loads(line)))
        return found

    def __enter__(self) -> Reports:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def report_error(path: str, error: BaseException, rank: int) -> None:
    """Writes a rank's error where its launcher looks for it, in one append.

    Arguments:
        path: of the launcher's `Reports`.
        error: a `SquallError` is shown as it renders, any other with its traceback.
        rank: of this process.
    """
    if isinstance(error, SquallError):
        headline, message, hint, status = error.headline, error.render(), error.hint, error.exit_status
        message = message.removesuffix(f"\n{hint}") if hint else message
    else:
        headline, hint, status = f"{type(error).__name__}: {error}", "", 1
        message = f"squall: rank {rank} failed\n{''.join(traceback.format_exception(error)).rstrip()}"
    report = Report(rank, status, headline, message, hint, lost_peer(error), time.monotonic())
    line = f"{json.dumps(asdict(report))}\n".encode()
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(fd, line)
    finally:
        os.close(fd)


def lost_peer(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, is a connection lost to another rank."""
    if isinstance(error, UserCodeError | InputError):  # what their own connections do is theirs
        return False
    seen: BaseException | None = error
    while seen is not None:
        if any(kind.__name__ in _LOST for kind in type(seen).__mro__):
            return True
        if isinstance(seen, RuntimeError) and any(words in str(seen) for words in _LOST_WORDS):
            return True
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return False


def verdict(reports: list[Report], exits: Mapping[int, int], processes: int, now: float) -> tuple[int, str]:
    """Chooses the error that explains the end of a job.

    Arguments:
        reports: what ranks said.
        exits: exit status of each rank that failed; minus the signal's number for one that was killed.
        processes: ranks of the job.
        now: when all had stopped, on the clock of the reports.

    Returns:
        The job's exit status, and the text to print once.
    """
    in_time = sorted(reports, key=lambda report: report.seconds)
    own = [report for report in in_time if not report.lost_peer]
    echoes = [report for report in in_time if report.lost_peer]
    silent = sorted(set(exits) - {report.rank for report in reports})
    killed = [rank for rank in silent if exits[rank] < 0 and exits[rank] != -signal.SIGTERM]
    mute = [rank for rank in silent if exits[rank] > 0]
    stopped = [rank for rank in silent if exits[rank] == -signal.SIGTERM]  # as the agent stops the rest
    if not own and (killed or mute or not echoes):
        rank = (killed + mute + stopped)[0]
        return _silent(rank, exits[rank], processes, echoes)
    first = (own + echoes)[0]
    lines = [first.message]
    others = processes - sum(report.message == first.message for report in reports)
    if others and first.status != InputError.exit_status:
        lines.append(
            f"  {others} other rank{'' if others == 1 else 's'} stopped in {max(now - first.seconds, 0):.1f} s"
        )
    return first.status, "\n".join([*lines, first.hint] if first.hint else lines)


def _silent(rank: int, code: int, processes: int, echoes: list[Report]) -> tuple[int, str]:
    rows: list[Row] = []
    if code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            rows.append(("often", "the machine ran out of memory: dmesg says so"))
    else:
        how = f"ended with exit status {code}"
        rows.append(("found", "it left no message here; look at what it printed itself"))
    rows += [(f"rank {echo.rank}", echo.headline) for echo in echoes[:1]]
    error = SquallError(f"rank {rank} of {processes} {how}", rows)
    error.exit_status = max(code, 1)
    return error.exit_status, error.render()
