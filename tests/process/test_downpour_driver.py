"""The driver of a run of replicas and shards is stopped, or killed: what stays behind, and how the run goes on."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.process.downpour_runs import GONE_S, check_ledger, running, squall, write_task
from tests.process.ray_drivers import until

MINIBATCHES = 600


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A command; at the end no temporary folder and no shared memory of it may be left."""
    task = write_task(tmp_path / "stops.py", samples=1200, epochs=2)
    shared = set(os.listdir("/dev/shm"))
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as temporary:  # sockets' paths are short
        monkeypatch.setenv("TMPDIR", temporary)
        yield squall("train", str(task), "--out", str(tmp_path / "run"), "--quiet")
        until(lambda: {path.name.partition("_")[0] for path in Path(temporary).iterdir()} <= {"torchinductor"}, GONE_S)
    until(lambda: set(os.listdir("/dev/shm")) <= shared, GONE_S)


def test_the_driver_is_killed_and_the_run_goes_on(
    tmp_path: Path, mark: Callable[[], list[int]], train: list[str]
) -> None:
    with running(tmp_path / "run", *train, cwd=tmp_path) as run:
        run.comes(lambda: len(run.sessions("saved")) > 1)
        run.process.kill()
        run.process.wait()
        until(lambda: not mark(), GONE_S)
        settled = run.settled()
        assert 0 < settled < MINIBATCHES
    with running(tmp_path / "run", *squall("resume", str(tmp_path / "run"), "--quiet"), cwd=tmp_path) as again:
        assert again.ended() == 0, again.said()
        result = check_ledger(again, MINIBATCHES)
    first, second = again.sessions("session")
    assert 0 < second["start_step"] <= settled
    assert first["pid"] != second["pid"]
    assert result["pushes"]["computed"] <= MINIBATCHES + result["pushes"]["repeated"]
    assert mark() == []


@pytest.mark.parametrize(("number", "status", "by"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")])
def test_a_signal_saves_and_says_how_to_go_on(
    tmp_path: Path, mark: Callable[[], list[int]], train: list[str], number: int, status: int, by: str
) -> None:
    with running(tmp_path / "run", *train, cwd=tmp_path) as run:
        run.reaches(20)
        os.killpg(run.process.pid, number)  # as a terminal and as a scheduler do it: everybody in the group
        assert run.ended() == status, run.said()
        said = run.said()
        result = run.result()
        settled = result["minibatches"]["settled"] if "minibatches" in result else result["steps"]
        assert f"stopped by {by} after minibatch {settled:,}" in said
        assert f"squall resume {tmp_path / 'run'}" in said
        assert result["outcome"] == "stopped"
        assert run.sessions("saved")[-1]["step"] == settled
        assert "Traceback" not in said
    assert mark() == []


def test_ctrl_c_twice_is_the_end_at_once(tmp_path: Path, mark: Callable[[], list[int]], train: list[str]) -> None:
    with running(tmp_path / "run", *train, cwd=tmp_path) as run:
        run.reaches(20)
        pids = run.pids(mark())
        for name in ("replica-0", "replica-1"):  # what they have in hand holds the first Ctrl-C up
            os.kill(pids[name], signal.SIGSTOP)
        run.process.send_signal(signal.SIGINT)
        run.comes(lambda: "Ctrl-C again" in run.said(), GONE_S)
        run.process.send_signal(signal.SIGINT)
        assert run.ended(GONE_S) == 130, run.said()
        assert "Traceback" not in run.said()
    until(lambda: not mark(), GONE_S)
