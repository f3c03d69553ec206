"""The processes of one launch: started, watched, signalled. What is done to them when is decided in `watch`."""

from __future__ import annotations

import math
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from squall.engine import machine
from squall.engine.ranklogs import RankLogs
from squall.engine.report import Reports
from squall.engine.verdict import STOPPING, Facts, Outcome, stopped, verdict
from squall.engine.watch import ABANDON, Grace, Watch
from squall.errors import RunError

WHERE = signal.SIGUSR2
"""Makes a rank write what it is doing to its standard error."""

_SIGNALS = (*STOPPING, signal.SIGQUIT)


class Ranks:
    """The processes of one launch.

    Arguments:
        command: of each rank.
        processes: ranks.
        given: environment variables of all ranks.
        reports: to which they write their errors.
        grace: how long they have to end.
        wakeup: a descriptor from which the numbers of signals to this process are read.
    """

    def __init__(
        self,
        command: list[str],
        processes: int,
        given: Mapping[str, str],
        reports: Reports,
        grace: Grace,
        wakeup: int,
    ) -> None:
        self._command, self._processes, self._given = command, processes, given
        self._reports, self._grace, self._wakeup = reports, grace, wakeup
        self._watch = Watch(processes, grace)
        self._ranks: dict[int, subprocess.Popen[bytes]] = {}
        self._memory = machine.memory_kills()
        self._states: dict[int, str] | None = None

    def start(self, output: RankLogs) -> None:
        """Starts all ranks."""
        for rank in range(self._processes):
            env = {**os.environ, **self._given, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            try:
                with output.pipes(rank) as (out, err):
                    self._ranks[rank] = subprocess.Popen(
                        self._command, env=env, stdout=out, stderr=err, start_new_session=True
                    )
            except OSError as error:
                raise RunError(
                    f"rank {rank} of {self._processes} could not be started",
                    [("found", error.strerror or str(error)), ("to do", "fewer --processes; see ulimit -u, ulimit -n")],
                ) from error
        output.listen()

    def watch_over(self) -> None:
        """Returns when all ranks have ended, or do not end even when killed."""
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        with ExitStack() as stack:
            ends = {}
            for rank, process in self._ranks.items():
                fd = os.pidfd_open(process.pid)  # readable when the process has ended
                stack.callback(os.close, fd)
                ends[fd] = rank
                poll.register(fd, select.POLLIN)
            watch = self._watch
            while watch.running:
                patience = watch.patience(time.monotonic())
                for fd, _ in poll.poll(None if patience is None else math.ceil(1000 * patience)):
                    if fd == self._wakeup:
                        self._hear()
                    else:
                        poll.unregister(fd)
                        self._ended(ends[fd])
                self._send(watch.due(time.monotonic()))

    def end(self) -> bool:
        """Kills what still runs, whatever has happened; says whether all ranks ended well."""
        running = [process for process in self._ranks.values() if process.poll() is None]
        for process in running:
            process.kill()
        for process in running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(1)
        return bool(self._ranks) and all(process.returncode == 0 for process in self._ranks.values())

    def outcome(self, output: RankLogs) -> Outcome:
        """What it came to; a signal that came while the last was put in order counts too."""
        watch = self._watch
        self._hear()
        facts = Facts(
            processes=self._processes,
            exits=watch.exits,
            reports=self._reports.read(),
            states=self._states or {},
            tails=output.tails(),
            logs=output.paths(),
            memory=machine.killed_for_memory(self._memory, machine.memory_kills()),
        )
        if watch.asked:
            return stopped(facts, watch.asked, watch.killed, None if watch.hurried else self._grace.leave)
        return verdict(facts)

    def _hear(self) -> None:
        """Takes what signals have come."""
        for number in _taken(self._wakeup):
            self._send(self._watch.came(number, time.monotonic()))

    def _ended(self, rank: int) -> None:
        code = self._ranks[rank].wait()
        self._watch.ended(rank, code, time.monotonic())
        if self._watch.failed and self._states is None:
            self._states = {other: _state(self._ranks[other].pid) for other in self._watch.running}
            if any(report.late for report in self._reports.read()):
                for other in self._watch.running:
                    if _listens(self._ranks[other].pid):
                        self._ranks[other].send_signal(WHERE)

    def _send(self, number: int) -> None:
        """To the ranks only: their loaders and writers end with them, and are needed until then."""
        if number in (0, ABANDON):
            return
        for rank in self._watch.running:
            self._ranks[rank].send_signal(number)


def _state(pid: int) -> str:
    """The kernel's letter for what a process does: R, S, D, T, ...; nothing where it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    return ""


def _listens(pid: int) -> bool:
    """Whether a process does something of its own at `WHERE`; others would end by it."""
    with suppress(OSError, StopIteration):
        status = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
        caught = next(line for line in status if line.startswith("SigCgt:")).split()[1]
        return bool(int(caught, 16) >> (WHERE - 1) & 1)
    return False


@contextmanager
def signals() -> Iterator[int]:
    """A descriptor that gives the numbers of signals as they come; afterwards this process's own handlers are back, and
    get those that nobody has read.

    A signal that is ignored, as SIGHUP under nohup, stays so.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        for number, handler in before.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, lambda *_: None)
        yield reader
    finally:
        for number, handler in before.items():
            if handler is not None:  # one that Python did not set
                signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        unread = _taken(reader)
        os.close(reader)
        os.close(writer)
        for late in unread:
            signal.raise_signal(late)


def _taken(wakeup: int) -> list[int]:
    """The signals of ours that have come to a wake-up descriptor."""
    try:
        return [number for number in os.read(wakeup, 64) if number in _SIGNALS]
    except BlockingIOError:
        return []
