"""The launcher with small ranks that need no torch: statuses, environment, signals, and nothing left behind."""

import contextlib
import gc
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from squall.cluster.world import listener, open_store
from squall.engine.spmd import as_rank, run_ranks
from squall.errors import InputError
from tests.leaks import children
from tests.process.launcher import launcher, lines

DEADLINE_S = 60

SAYS_PLACE = """
import json, os, sys
from pathlib import Path
rank = os.environ["RANK"]
Path(sys.argv[1], rank).write_text(json.dumps({"environ": dict(os.environ), "arguments": sys.argv[2:]}))
"""

FAILS = """
import os, sys
from squall.engine.spmd import as_rank
from squall.errors import InputError
def main():
    if sys.argv[1] == "input":
        raise InputError("2 mistakes in cifar10", [("worker=32", "no such field")], "see --fields")
    if os.environ["RANK"] == "1":
        raise KeyError("gooseneck")
    __import__("signal").pause()
sys.exit(as_rank(main))
"""

WAITS = """
import os, signal, sys
from squall.engine.spmd import as_rank
def main():
    os.write(1, f"{os.getpid()}\\n".encode())
    signal.pause()
sys.exit(as_rank(main))
"""


@pytest.fixture(scope="module", autouse=True)
def store_opened_once() -> None:
    """The first store of a process makes libuv open a pipe that stays for good."""
    open_store(listener(), timedelta(seconds=5))


@pytest.fixture(autouse=True)
def nothing_changed_here(store_opened_once: None) -> Iterator[None]:
    """A launch leaves this process as it was: environment, signal handlers, descriptors, threads, children."""

    def state() -> tuple[object, ...]:
        handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
        environ = {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"}
        return environ, handlers, len(os.listdir("/proc/self/fd")), threading.active_count(), children()

    gc.collect()  # what earlier tests dropped may still hold descriptors
    before = state()
    yield
    gc.collect()
    assert state() == before


def test_each_rank_is_told_its_place_and_nothing_of_another_job(
    script: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "7")
    monkeypatch.setenv("WORLD_SIZE", "9")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    arguments = [script(SAYS_PLACE), str(tmp_path), "lr=0.1", "${local_rank}", "$HOME $$", "", "two words"]
    monkeypatch.setenv("EXTRA", "1")
    assert run_ranks(arguments, 3, threads=2).status == 0
    said = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(3)]
    for rank, one in enumerate(said):
        environ = one["environ"]
        assert one["arguments"] == arguments[2:]
        assert (environ["RANK"], environ["LOCAL_RANK"]) == (str(rank), str(rank))
        assert (environ["WORLD_SIZE"], environ["LOCAL_WORLD_SIZE"]) == ("3", "3")
        assert environ["MASTER_ADDR"] == "127.0.0.1"
        assert environ["OMP_NUM_THREADS"] == environ["MKL_NUM_THREADS"] == "2"
        assert environ["GLOO_SOCKET_IFNAME"] == "lo"
        assert environ["SPT_NOENV"] == "1"  # a process that names itself keeps the launch's mark
        assert environ["EXTRA"] == "1"


def test_a_mistake_that_all_ranks_find_is_told_once(
    script: Callable[[str], str], capfd: pytest.CaptureFixture[str]
) -> None:
    outcome = run_ranks([script(FAILS), "input"], 3, threads=1)
    assert outcome.status == 2
    head, *rows = outcome.message.splitlines()
    assert head.split() == ["squall:", "2", "mistakes", "in", "cifar10", "(exit", "2)"]
    assert rows == ["  worker=32   no such field", "see --fields"]
    assert capfd.readouterr() == ("", "")


def test_an_error_of_one_rank_stops_the_others_and_shows_its_traceback(script: Callable[[str], str]) -> None:
    outcome = run_ranks([script(FAILS), "own"], 3, threads=1)
    assert outcome.status == 1
    assert outcome.message.startswith("squall: rank 1 failed\nTraceback")
    assert "KeyError: 'gooseneck'" in outcome.message
    assert "2 other ranks stopped in" in outcome.message.splitlines()[-1]


def test_a_plain_script_keeps_its_exit_status(script: Callable[[str], str]) -> None:
    outcome = run_ranks([script("import sys; sys.exit(41)")], 1, threads=1)
    assert outcome.status == 41
    assert "rank 0 of 1 ended with exit status 41" in outcome.message


def test_a_rank_that_kills_itself_is_named_with_its_signal(script: Callable[[str], str]) -> None:
    kill = "import os, signal\nif os.environ['RANK'] == '1': os.kill(os.getpid(), 9)\nsignal.pause()"
    outcome = run_ranks([script(kill)], 2, threads=1)
    assert outcome.status == 1
    assert "rank 1 of 2 was killed by SIGKILL" in outcome.message


def test_numbers_below_one_are_refused_before_anything_starts() -> None:
    with pytest.raises(InputError, match="--processes 0"):
        run_ranks(["-c", "1/0"], 0, threads=1)
    with pytest.raises(InputError, match="threads 0"):
        run_ranks(["-c", "1/0"], 1, threads=0)


def test_launching_from_another_thread_is_refused() -> None:
    caught = []

    def attempt() -> None:
        try:
            run_ranks(["-c", "1/0"], 1, threads=1)
        except RuntimeError as error:
            caught.append(str(error))

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    assert caught == ["ranks are launched from the main thread: only it gets the signals to forward"]


def test_without_a_launcher_a_rank_main_just_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SQUALL_REPORTS", raising=False)
    assert as_rank(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        as_rank(lambda: 1 // 0)


def ended(pid_fds: list[int], deadline: float) -> bool:
    """Whether all these processes end before the deadline; a descriptor of a process is readable when it has."""
    poll = select.poll()
    waiting = set(pid_fds)
    for fd in waiting:
        poll.register(fd, select.POLLIN)
    while waiting:
        events = poll.poll(max(0, deadline - time.monotonic()) * 1000)
        if not events:
            return False
        for fd, _ in events:
            poll.unregister(fd)
            waiting.remove(fd)
    return True


def let_go(pid_fd: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # as it should be
        signal.pidfd_send_signal(pid_fd, signal.SIGKILL)
    os.close(pid_fd)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_a_stopped_launcher_takes_its_ranks_with_it(script: Callable[[str], str], how: signal.Signals) -> None:
    with launcher(script(WAITS)) as process, contextlib.ExitStack() as stack:
        fds = [os.pidfd_open(int(line)) for line in lines(process, 2)]
        for fd in fds:
            stack.callback(let_go, fd)
        process.send_signal(how)
        assert ended(fds, time.monotonic() + 10)
        _, err = process.communicate(timeout=DEADLINE_S)
    if how == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 128 + how
        assert err == f"squall: stopped by {how.name}; all 2 ranks have ended\n"


def test_a_rank_whose_launcher_died_before_it_was_tied_does_not_start() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    code = "import os, sys; from squall.cluster.lifeline import tie_to_launcher; tie_to_launcher(os.environ)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "SQUALL_LAUNCHER_PID": str(gone.pid)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 1
    assert "the launcher of this rank is gone" in done.stderr
