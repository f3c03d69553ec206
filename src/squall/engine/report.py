"""What a rank says of its end: it appends its error to a file in its launcher's memory, read when all have ended.

When a rank fails, the others lose a connection within milliseconds and fail as well; one that hangs makes them wait
until their deadline. So a report says besides the error whether another rank's end was the reason, and if it was, whom
this one waited for, for what, and whether it lost the connection or its patience. `verdict` draws the conclusion.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from squall.errors import InputError, SquallError, UserCodeError

REPORTS = "SQUALL_REPORTS"
"""Environment variable of a rank: the file that takes its error. Its value is that of one launch only."""

_LOST = ("PeerLostError", "PeerMissingError")
_LATE_WORDS = (
    "Timed out waiting",
    "Wait timeout",
    "wait timeout after",
    "Application timeout caused pair closure",
    "Watchdog caught collective operation timeout",
    "found not all others within",
)
_LOST_WORDS = (
    *_LATE_WORDS,
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "failed to recv, got 0 bytes",
    "NCCL communicator was aborted",
    "remote process exited",
)
_WAITED = re.compile(r"[Tt]imed out waiting (\d+)ms|[Tt]imeout\(ms\)=(\d+)|waited ([\d.]+) s for|within ([\d.]+) s")


@dataclass(frozen=True)
class Report:
    """What one rank said before it ended.

    Arguments:
        rank: whose it is.
        status: the exit status it asks for.
        headline: the error in one line.
        message: rendered text, without its last line of advice; nothing where it was interrupted by Ctrl-C.
        hint: that line, or nothing.
        lost_peer: another rank's end, or its silence, was the reason.
        seconds: when, on this machine's monotonic clock.
        late: it was its silence: a deadline passed.
        peer: the rank that was waited for, where that is known.
        waited: what for: ``20 s for it to exchange partial sums``.
    """

    rank: int
    status: int
    headline: str
    message: str
    hint: str
    lost_peer: bool
    seconds: float
    late: bool = False
    peer: int | None = None
    waited: str = ""


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
        error: a `SquallError` is shown as it renders, any other but Ctrl-C with its traceback.
        rank: of this process.
    """
    if isinstance(error, SquallError):
        headline, message, hint, status = error.headline, error.render(), error.hint, error.exit_status
        message = message.removesuffix(f"\n{hint}") if hint else message
    elif isinstance(error, KeyboardInterrupt):
        headline, message, hint, status = f"rank {rank} was interrupted", "", "", 128 + signal.SIGINT
    else:
        headline, hint, status = f"{type(error).__name__}: {error}", "", 1
        message = f"squall: rank {rank} failed\n{''.join(traceback.format_exception(error)).rstrip()}"
    lost = lost_peer(error)
    waits = _waits(error) if lost else {}
    report = Report(rank, status, headline, message, hint, lost, time.monotonic(), **waits)  # type: ignore[arg-type]
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
    return any(
        any(kind.__name__ in _LOST for kind in type(each).__mro__)
        or (isinstance(each, RuntimeError) and any(words in str(each) for words in _LOST_WORDS))
        for each in _chain(error)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it was raised from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def _waits(error: BaseException) -> dict[str, object]:
    """Whom and what a rank waited for that lost its peer; by `PeerLostError`, else from torch's words."""
    errors = list(_chain(error))
    text = "\n".join(str(each) for each in errors)
    late = any(words in text for words in _LATE_WORDS) or any(
        type(each).__name__ == "PeerMissingError" for each in errors
    )
    match = _WAITED.search(text)
    named = next((each for each in errors if type(each).__name__ == "PeerLostError"), None)
    waited = "for it"
    if named is not None:
        waited = f"{getattr(named, 'direction', 'for')} it {getattr(named, 'purpose', '')}".rstrip()
    if match and late:
        in_ms = match[1] or match[2]
        seconds = float(in_ms) / 1000 if in_ms else float(match[3] or match[4])
        waited = f"{seconds:g} s {waited}"
    return {"late": late, "peer": getattr(named, "peer", None), "waited": waited}
