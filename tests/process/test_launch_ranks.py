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
from squall.engine.spmd import as_rank, launch, run_ranks
from squall.errors import InputError
from tests.leaks import children

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

LAUNCHES = "import sys; from squall.engine.spmd import launch; sys.exit(launch([sys.argv[1]], 2, threads=1))"


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "rank.py"
        path.write_text(text)
        return str(path)

    return write


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
    assert launch(arguments, 3, threads=2, env={"EXTRA": "1"}) == 0
    said = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(3)]
    for rank, one in enumerate(said):
        environ = one["environ"]
        assert one["arguments"] == arguments[2:]
        assert (environ["RANK"], environ["LOCAL_RANK"]) == (str(rank), str(rank))
        assert (environ["WORLD_SIZE"], environ["LOCAL_WORLD_SIZE"]) == ("3", "3")
        assert environ["MASTER_ADDR"] == "127.0.0.1"
        assert environ["OMP_NUM_THREADS"] == environ["MKL_NUM_THREADS"] == "2"
        assert environ["GLOO_SOCKET_IFNAME"] == "lo"
        assert environ["EXTRA"] == "1"


def test_a_mistake_that_all_ranks_find_is_printed_once(
    script: Callable[[str], str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert launch([script(FAILS), "input"], 3, threads=1) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines()[0].split() == ["squall:", "2", "mistakes", "in", "cifar10", "(exit", "2)"]
    assert err.splitlines()[1:] == ["  worker=32   no such field", "see --fields"]


def test_an_error_of_one_rank_stops_the_others_and_shows_its_traceback(
    script: Callable[[str], str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert launch([script(FAILS), "own"], 3, threads=1) == 1
    _, err = capfd.readouterr()
    assert err.startswith("squall: rank 1 failed\nTraceback")
    assert "KeyError: 'gooseneck'" in err
    assert "2 other ranks stopped in" in err.splitlines()[-1]


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
        launch(["-c", "1/0"], 0, threads=1)
    with pytest.raises(InputError, match="threads 0"):
        launch(["-c", "1/0"], 1, threads=0)


def test_launching_from_another_thread_is_refused() -> None:
    caught = []

    def attempt() -> None:
        try:
            launch(["-c", "1/0"], 1, threads=1)
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


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_a_stopped_launcher_takes_its_ranks_with_it(script: Callable[[str], str], how: signal.Signals) -> None:
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHES, script(WAITS)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
        start_new_session=True,
    )
    fds: list[int] = []
    try:
        assert launcher.stdout is not None
        pids = [int(launcher.stdout.readline()) for _ in range(2)]
        fds = [os.pidfd_open(pid) for pid in pids]
        launcher.send_signal(how)
        assert ended(fds, time.monotonic() + 10)
        _, err = launcher.communicate(timeout=DEADLINE_S)
    finally:
        for fd in fds:
            with contextlib.suppress(ProcessLookupError):  # as it should be
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            os.close(fd)
        launcher.kill()
        launcher.communicate()
    if how == signal.SIGKILL:
        assert launcher.returncode == -signal.SIGKILL
    else:
        assert launcher.returncode == 128 + how
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
