"""Starts the ranks of a lock-step job on this machine, watches them, and ends them together.

torch's own elastic agent does the starting and watching, without restarts, with a rendezvous of ours that listens on
loopback only. What is added is what a person meets: one error instead of P, no rank left behind however the launcher
ends, threads and network interfaces set before torch starts in a rank::

    launch ── agent ──┬── rank 0   as_rank(main): tied to the launcher, errors into its report
                      └── rank 1   ...
    exit status  <── verdict over the reports and the exit codes

This module imports torch only inside `launch`: a rank must be tied to its launcher before the second that torch takes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from squall.cluster.lifeline import LAUNCHER, tie_to_launcher
from squall.engine.report import REPORTS, Reports, report_error, verdict
from squall.errors import InputError

_POLL_S = 0.03
_GRACE_S = 10
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME")
_RANK_OF_ANOTHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")


@dataclass(frozen=True)
class Outcome:
    """How a job of ranks ended: its exit status, and the text that says why if it is not 0."""

    status: int
    message: str = ""


def launch(arguments: Sequence[str], processes: int, *, threads: int, env: Mapping[str, str] | None = None) -> int:
    """Runs ``python *arguments`` in `processes` ranks of this machine, and prints the one error that ended them.

    Arguments:
        arguments: of this interpreter: ``["-m", "squall", "train", "digits"]``.
        processes: number of ranks.
        threads: of each rank, for arithmetic.
        env: more environment variables for the ranks.

    Returns:
        The exit status: 0, the failed rank's, or 128 + the number of the signal that stopped the launcher.

    Raises:
        InputError: fewer than one process or thread.
        RuntimeError: called from another thread than the main one: signals could not be forwarded.
    """
    outcome = run_ranks(arguments, processes, threads=threads, env=env)
    if outcome.message:
        sys.stdout.flush()
        sys.stderr.write(f"{outcome.message}\n")
        sys.stderr.flush()
    return outcome.status


def run_ranks(
    arguments: Sequence[str], processes: int, *, threads: int, env: Mapping[str, str] | None = None
) -> Outcome:
    """`launch` without the printing."""
    for flag, number in (("--processes", processes), ("threads", threads)):
        if number < 1:
            raise InputError(f"{flag} {number}", [("rule", "a whole number from 1")])
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("ranks are launched from the main thread: only it gets the signals to forward")
    with Reports() as reports:
        added = _rank_environment(threads) | {REPORTS: reports.path, LAUNCHER: str(os.getpid())} | dict(env or {})
        with _environment(added), _handlers():
            return _run(list(arguments), processes, reports)


def as_rank(main: Callable[[], int]) -> int:
    """Runs a rank's main function as its launcher expects: it dies with the launcher, and reports its error.

    Call it first thing, before torch is imported. Where no launcher of ours started the process, `main` just runs.

    Returns:
        The exit status to end with.
    """
    path = os.environ.get(REPORTS)
    if path is None:
        return main()
    try:
        tie_to_launcher(os.environ)
        return main()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        try:
            report_error(path, error, int(os.environ["RANK"]))
        except OSError:  # the launcher is gone: nobody reads reports any more
            raise error from None
        return int(getattr(error, "exit_status", 1))


def _run(arguments: list[str], processes: int, reports: Reports) -> Outcome:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from squall.engine import loopback

    loopback.register()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"squall-{os.getpid()}",
        role="rank",
        rdzv_backend=loopback.BACKEND,
        max_restarts=0,
        monitor_interval=_POLL_S,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),  # no folders; streams are inherited
        local_addr="127.0.0.1",
        shutdown_timeout=_GRACE_S,
        signals_to_handle=",".join(_SIGNALS),
    )
    escaped = [argument.replace("$", "$$") for argument in arguments]  # the agent substitutes ${local_rank}
    try:
        with _quiet():
            elastic_launch(config, sys.executable)(*escaped)
    except SignalException as error:
        stopped = signal.Signals(error.sigval)
        return Outcome(128 + stopped, f"squall: stopped by {stopped.name}; all {processes} ranks have ended")
    except ChildFailedError as error:
        exits = {rank: failure.exitcode for rank, failure in error.failures.items()}
        return Outcome(*verdict(reports.read(), exits, processes, time.monotonic()))
    return Outcome(0)


def _rank_environment(threads: int) -> dict[str, str]:
    values = {name: str(threads) for name in _THREADS}
    values |= dict.fromkeys(_INTERFACES, "lo")  # also for groups that the user's code makes
    # a lost peer is reported once, by us; torch's own backtraces are there for whoever asks
    values["TORCH_CPP_LOG_LEVEL"] = os.environ.get("TORCH_CPP_LOG_LEVEL", "FATAL")
    return values


@contextlib.contextmanager
def _environment(added: Mapping[str, str]) -> Iterator[None]:
    """The agent hands its own environment down, so it is changed while the agent runs, and put back."""
    before = dict(os.environ)
    for name in _RANK_OF_ANOTHER:
        os.environ.pop(name, None)
    os.environ.update(added)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _handlers() -> Iterator[None]:
    """The agent installs handlers that raise; afterwards this process's own ones are back."""
    before = {number: signal.getsignal(number) for number in (getattr(signal, name) for name in _SIGNALS)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the agent's log from the terminal while it runs: the one message is ours."""
    log = logging.getLogger("torch.distributed")
    handlers, propagate = log.handlers, log.propagate
    log.handlers, log.propagate = [logging.NullHandler()], False
    try:
        yield
    finally:
        log.handlers, log.propagate = handlers, propagate
