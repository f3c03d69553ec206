"""Starts the ranks of a lock-step job on this machine, watches them, and ends them together.

Each rank is a plain child process with the environment that torchrun would give it. torch's elastic agent, which
torchrun is made of, does not fit here: it signals whole process groups (a loader that dies of it costs the rank the
checkpoint that the signal asks for), gives ranks half a minute after a failure whatever it is told, and knows nothing
of what a rank wrote::

    run_ranks ──┬── rank 0   as_rank(main): tied to the launcher; its error into a report
                ├── rank 1   ...                                             ranks, told what to do by watch
                ├── a store on loopback, where they meet                     loopback
                ├── a thread that reads what they write                      ranklogs, outlets
                └── at the end: whatever they have left behind               leftovers
    exits, reports, last lines  ->  verdict  ->  Outcome

This module imports torch only when ranks are on their way: they must not wait for the second that it takes.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from squall.cluster.lifeline import LAUNCHER, tie_to_launcher
from squall.cluster.place import LOOPBACK
from squall.engine.leftovers import TITLES, sweep
from squall.engine.loopback import Meeting
from squall.engine.outlets import LogFolder
from squall.engine.ranklogs import RankLogs
from squall.engine.ranks import WHERE, Ranks, signals
from squall.engine.report import REPORTS, Reports, report_error
from squall.engine.verdict import Outcome
from squall.engine.watch import Grace
from squall.errors import InputError

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME")
_LEFTOVERS_S = 2.0  # after a job that ended well; after a failure there is nothing to wait for


def run_ranks(
    arguments: Sequence[str],
    processes: int,
    *,
    threads: int,
    logs: LogFolder | None = None,
    grace: Grace | None = None,
) -> Outcome:
    """Runs ``python *arguments`` in `processes` ranks of this machine until all have ended.

    Arguments:
        arguments: of this interpreter: ``["-m", "squall", "train", "digits"]``.
        processes: number of ranks.
        threads: of each rank, for arithmetic.
        logs: where what ranks write is kept; by default nowhere.
        grace: how long ranks have to end.

    Returns:
        How they ended: the exit status (0, the failed rank's, or 128 + the number of the signal that stopped the
        launcher), and the one message that explains it, which is not printed yet.

    Raises:
        InputError: fewer than one process or thread.
        RunError: a rank could not be started.
        RuntimeError: called from another thread than the main one: signals could not be forwarded.
    """
    for flag, number in (("--processes", processes), ("threads", threads)):
        if number < 1:
            raise InputError(f"{flag} {number}", [("rule", "a whole number from 1")])
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("ranks are launched from the main thread: only it gets the signals to forward")
    sys.stdout.flush()  # rank 0 writes to the same place
    with Reports() as reports, Meeting() as meeting, signals() as wakeup:
        given = {**_environment(threads, processes, meeting.port), **TITLES, REPORTS: reports.path}
        ranks = Ranks([sys.executable, *arguments], processes, given, reports, grace or Grace(), wakeup)
        with RankLogs(processes, logs) as output:
            try:
                ranks.start(output)
                meeting.serve()
                ranks.watch_over()
            finally:
                ended_well = ranks.end()
                sweep(REPORTS, reports.path, _LEFTOVERS_S if ended_well else 0.0)
        return ranks.outcome(output)


def as_rank(main: Callable[[], int]) -> int:
    """Runs a rank's main function as its launcher expects: it dies with the launcher, and reports its error.

    Call it first thing, before torch is imported. Where no launcher of ours started the process, `main` just runs.

    Returns:
        The exit status to end with.
    """
    path = os.environ.get(REPORTS)
    if path is None:
        return main()
    rank = int(os.environ["RANK"])
    faulthandler.enable()  # what was being done stands in the last lines: of a crash in native code,
    faulthandler.register(WHERE, all_threads=False)  # and of a rank that others waited for in vain
    if rank:
        with suppress(AttributeError, ValueError):  # somebody's own stream
            sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        tie_to_launcher(os.environ)
        return main()
    except (Exception, KeyboardInterrupt) as error:
        try:
            report_error(path, error, rank)
        except OSError:  # the launcher is gone: nobody reads reports any more
            raise error from None
        return 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else int(getattr(error, "exit_status", 1))


def _environment(threads: int, processes: int, port: int) -> dict[str, str]:
    """What all ranks are told, in torchrun's words."""
    values = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes))
    values |= {"GROUP_RANK": "0", "MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(port)}
    values |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    values |= {"TORCHELASTIC_RUN_ID": f"squall-{os.getpid()}", LAUNCHER: str(os.getpid())}
    values |= dict.fromkeys(_THREADS, str(threads))
    values |= dict.fromkeys(_INTERFACES, "lo")  # also for groups that the user's code makes
    # a lost peer is reported once, by us; torch's own backtraces are there for whoever asks
    values["TORCH_CPP_LOG_LEVEL"] = os.environ.get("TORCH_CPP_LOG_LEVEL", "FATAL")
    return values
