"""A launcher in a process of its own, which a test may signal and kill. Its two ranks run a script."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LAUNCHES = """
import sys
from squall.engine.spmd import run_ranks
from squall.engine.watch import Grace
leave_s, *arguments = sys.argv[1:]
outcome = run_ranks(arguments, 2, threads=1, grace=Grace(leave=float(leave_s)))
if outcome.message:
    print(outcome.message, file=sys.stderr)
sys.exit(outcome.status)
"""


def command(*arguments: str, leave_s: float = 60.0) -> list[str]:
    """Starts a launcher of ranks with these arguments of Python, which have so long to leave."""
    return [sys.executable, "-c", LAUNCHES, str(leave_s), *arguments]


@contextmanager
def launcher(*arguments: str, leave_s: float = 60.0) -> Iterator[subprocess.Popen[str]]:
    """A launcher that runs; ended at the end, if it has not."""
    with subprocess.Popen(
        command(*arguments, leave_s=leave_s),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def hangup(handler: signal.Handlers) -> Iterator[None]:
    """What processes that are started now do at SIGHUP: the tests themselves may run under nohup."""
    before = signal.signal(signal.SIGHUP, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def lines(process: subprocess.Popen[str], number: int) -> list[str]:
    """The next lines that it and its ranks print."""
    assert process.stdout is not None
    return [process.stdout.readline() for _ in range(number)]
