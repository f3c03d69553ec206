"""The life of one rank: a forked process that is made what a fresh one under torchrun would be, and runs one function.

What a fresh interpreter has and a forked one has not is done here: its own session, streams, folder, environment,
number of threads, and random states. What cannot be done again is the seed of `hash(str)`, which all ranks share.
"""

from __future__ import annotations

import atexit
import faulthandler
import fcntl
import importlib
import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from squall.verify.stage import kin
from squall.verify.stage.job import Job
from squall.verify.stage.stacks import failure

WHERE = signal.SIGRTMIN + 7
"""Makes a rank write where it is, and end by this signal."""

_FIRST_FD = 100  # above those that a script would close or reuse


def be_rank(rank: int, job: Job, environ: Mapping[str, str], directory: str, runner: int) -> NoReturn:
    """Turns this process, just forked by the runner, into a rank, and never returns."""
    status = 1
    try:
        _settle(rank, job, environ, directory, runner)
        status = _perform(rank, job)
    except BaseException:  # ours, or the machine's: no such folder, no space
        traceback.print_exc()
    finally:
        _leave(status)


def error_file(folder: Path, rank: int) -> Path:
    """Where a rank writes the exception that left its main function."""
    return folder / f"rank-{rank}.error.json"


def stack_file(folder: Path, rank: int) -> Path:
    """Where a rank that is ended by a signal writes its stack."""
    return folder / f"rank-{rank}.stack"


def _settle(rank: int, job: Job, environ: Mapping[str, str], directory: str, runner: int) -> None:
    os.setsid()
    kin.tie_to(runner)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environ)
    _redirect(os.devnull, os.O_RDONLY, 0)
    _redirect(job.folder / f"rank-{rank}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 1)
    _redirect(job.folder / f"rank-{rank}.err", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # what a killed rank has said is kept
    stacks = _high(os.open(stack_file(job.folder, rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND))
    faulthandler.enable(stacks, all_threads=False)
    faulthandler.register(WHERE, stacks, all_threads=False, chain=True)  # then the default: it ends the process
    _refresh(rank)


def _refresh(rank: int) -> None:
    """What was settled when the stage imported it, and is a rank's own."""
    import torch

    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    torch.set_num_threads(max(int(first), 1) if first.isdigit() else 1)
    torch.default_generator.seed()  # of CUDA's there are none yet
    random.seed()
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    if lightning := sys.modules.get("lightning_utilities.core.rank_zero"):
        lightning.rank_zero_only.rank = rank  # read from the environment by its import


def _perform(rank: int, job: Job) -> int:
    """Calls the main function; returns the exit status. A process that it forked may return here as well."""
    me = os.getpid()
    try:
        function(job.main)(rank=rank, processes=job.processes, folder=job.folder, **job.options)
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            return (leaving.code or 0) & 0xFF
        with suppress(Exception):
            print(leaving.code, file=sys.stderr)  # noqa: T201 as the interpreter does
        return 1
    except BaseException as error:
        if os.getpid() == me:
            _report(error, error_file(job.folder, rank))
        with suppress(Exception):
            below = error.__traceback__.tb_next if error.__traceback__ else None
            sys.excepthook(type(error), error.with_traceback(below), below)
        return 1
    return 0


def function(name: str) -> Callable[..., Any]:
    """What ``"package.module:function"`` names."""
    module, _, attribute = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return found


def _report(error: BaseException, path: Path) -> None:
    with suppress(OSError):
        written = path.with_suffix(".part")
        written.write_text(json.dumps({"at": time.monotonic(), "failure": failure(error)}))
        written.rename(path)


def _leave(status: int) -> NoReturn:
    """Ends as an interpreter does, up to its own shutdown: torch's threads, which still run, may abort in that."""
    try:
        with suppress(Exception):
            threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are no daemons
        with suppress(Exception):
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
    finally:
        os._exit(status)


def _redirect(path: str | Path, flags: int, fd: int) -> None:
    opened = os.open(path, flags, 0o644)
    os.dup2(opened, fd)
    os.close(opened)


def _high(fd: int) -> int:
    """The same file under a number that scripts do not meet."""
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FD)
    os.close(fd)
    return high
