"""A tracker that works, waits, fails or hangs: what arrives, what is said, and that the training never waits for it.

Each has a process of its own, with a client that misbehaves to order (`tests/unit/tracker_client.py`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from squall.records import Ended, EpochEnded, Noted, Record, SessionEnded, Stepped
from squall.run.track_child import clean, headline
from squall.run.tracker import CAPACITY, Tracker
from tests import leaks
from tests.unit.tracker_client import SECRET

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0  # for what has to come
SHORT_S = 0.25  # for what never comes


@pytest.fixture(autouse=True)
def _clients_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


class Made:
    """A tracker, and what it said and did."""

    def __init__(self, folder: Path, name: str = "works", *, known: str | None = None, close_s: float = PATIENCE_S):
        self.folder = folder
        self.said: list[str] = []
        self.speakers: set[int] = set()
        self.kept: list[str] = []
        about = {"known": known, "name": name, "start_step": 0, "folder": str(folder)}
        self.sink = Tracker(
            "fake",
            "tests.unit.tracker_client",
            about,
            {"lr.base": 0.1},
            keep=self.kept.append,
            warn=self._hear,
            log=folder / "logs" / "fake.log",
            close_s=close_s,
        )

    def _hear(self, text: str) -> None:
        self.said.append(text)
        self.speakers.add(threading.get_ident())

    def seen(self) -> list[Any]:
        path = self.folder / "seen.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def told(self) -> list[str]:
        return [what for what, _ in self.seen()]

    def points(self) -> list[Any]:
        return [point for what, values in self.seen() if what == "log" for point in values]


def step(index: int, seconds: float | None = None) -> Record:
    return Stepped(index, 0, 8, 1.0, 0.5, float(index) if seconds is None else seconds)


def epoch(index: int) -> Record:
    return EpochEnded(index, index, 1.0, 0.5, 10.0, {}, 1.0, test={"accuracy": 0.5})


def ended(outcome: str = "finished") -> Record:
    return Ended(outcome, "", 1.0, {"test_accuracy": 0.75, "weights_sha256": "ab", "error": "not to be sent"})


def until(true: Callable[[], object]) -> None:
    """Waits for something that is bound to happen."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pids(folder: Path) -> list[int]:
    until((folder / "pids.json").exists)
    found: list[int] = json.loads((folder / "pids.json").read_text())
    return found


def test_a_run_arrives_in_its_order_and_nothing_stays_behind(tmp_path: Path) -> None:
    made = Made(tmp_path)
    for record in (Noted("the first record starts it"), step(0), step(1), epoch(1), ended()):
        made.sink(record)
    made.sink.close()
    assert made.seen()[:2] == [["start", {"known": None, "start_step": 0}], ["config", {"lr.base": 0.1}]]
    assert [at for at, _ in made.points()] == [0, 1, 1]
    assert made.seen()[-1] == [
        "end",
        {"outcome": "finished", "step": 1, "result": {"test_accuracy": 0.75, "weights_sha256": "ab"}},
    ]
    assert (made.kept, made.said) == (["number one"], [])
    assert not any(map(alive, pids(tmp_path)))


def test_nothing_is_started_for_a_run_that_never_began(tmp_path: Path) -> None:
    made = Made(tmp_path)
    made.sink.close()
    made.sink(step(0))
    assert made.seen() == []


def test_a_run_closed_without_an_end_is_stopped(tmp_path: Path) -> None:
    made = Made(tmp_path)
    made.sink(step(0))
    made.sink.close()
    assert made.seen()[-1][1]["outcome"] == "stopped"


def test_the_end_of_a_session_says_how_a_run_ended_that_has_no_other(tmp_path: Path) -> None:
    made = Made(tmp_path)
    made.sink(step(0))
    made.sink(SessionEnded(0.0, 1, "failed"))
    made.sink.close()
    assert made.seen()[-1][1]["outcome"] == "failed"


def test_a_resumed_run_goes_on_under_its_name(tmp_path: Path) -> None:
    made = Made(tmp_path, known="7f")
    made.sink(step(0))
    made.sink.close()
    made.sink.close()
    made.sink(step(1))
    assert made.seen()[0] == ["start", {"known": "7f", "start_step": 0}]
    assert made.kept == ["7f"]
    assert len(made.points()) == 1


@pytest.mark.parametrize("where", ["start", "config", "log", "end"])
def test_a_tracker_that_hangs_is_given_up_with_a_word_and_its_processes_are_ended(where: str, tmp_path: Path) -> None:
    made = Made(tmp_path, f"parent blocks in {where}", close_s=SHORT_S)
    made.sink(step(0))
    if where == "end":
        until(lambda: "log" in made.told())
        made.sink(ended())
    until(lambda: where in made.told())
    for index in range(3 * CAPACITY):
        made.sink(step(index))
    made.sink.close()
    assert made.said[0] == "fake did not take its last values within 0.25 s"
    until(lambda: not any(map(alive, pids(tmp_path))))
    assert len(pids(tmp_path)) == 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("squall-tracker")]


@pytest.mark.parametrize("where", ["start", "config", "log", "end"])
def test_a_tracker_that_fails_is_off_with_one_word_and_the_run_goes_on(where: str, tmp_path: Path) -> None:
    made = Made(tmp_path, f"fails in {where}")
    made.sink(step(0))
    if where == "end":
        made.sink(ended())
    until(lambda: where in made.told() and not made.sink._thread.is_alive())  # type: ignore[union-attr]
    for index in range(1, 100):
        made.sink(step(index))
    made.sink(ended())
    made.sink.close()
    assert made.said == ["fake is off: ValueError: no answer from https://host/api; the run goes on without it"]
    assert made.speakers == {threading.get_ident()}  # sinks are never called beside the training
    log = (tmp_path / "logs" / "fake.log").read_text()
    assert "and more" in log
    assert SECRET not in log


def test_a_tracker_whose_process_dies_is_off(tmp_path: Path) -> None:
    made = Made(tmp_path, "dies in log")
    made.sink(step(0))
    made.sink.close()
    assert made.said == ["fake is off: its process ended by SIGKILL; the run goes on without it"]


def test_a_client_that_cannot_be_imported_is_off(tmp_path: Path) -> None:
    said: list[str] = []
    sink = Tracker("fake", "tests.unit.no_such_client", {}, {}, keep=said.append, warn=said.append)
    sink(step(0))
    sink.close()
    assert said == [
        "fake is off: ModuleNotFoundError: No module named 'tests.unit.no_such_client'; the run goes on without it"
    ]


def test_a_slow_tracker_loses_old_steps_and_says_how_many_but_gets_every_epoch(tmp_path: Path) -> None:
    made = Made(tmp_path, "waits in config")
    made.sink(step(0))
    until(lambda: "config" in made.told())
    for index in range(1, 3 * CAPACITY):
        made.sink(step(index))
        if index % CAPACITY == 0:
            made.sink(epoch(index))
    made.sink(ended())
    (tmp_path / "go").touch()
    made.sink.close()
    points = made.points()
    assert [at for at, values in points if "test/accuracy" in values] == [CAPACITY, 2 * CAPACITY]
    assert len(points) == CAPACITY
    assert points[-1][0] == 3 * CAPACITY - 1
    assert made.said == [f"fake is slow: {2 * CAPACITY + 2:,} values did not go there"]


def test_the_environment_and_the_signals_of_the_training_are_not_the_tracker_s(tmp_path: Path) -> None:
    made = Made(tmp_path)
    made.sink(step(0))
    (pid,) = pids(tmp_path)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        os.kill(pid, number)  # a scheduler sends them to all of a job
    made.sink(step(1))
    made.sink.close()
    assert made.told()[-1] == "end"
    assert leaks.children().isdisjoint({pid})


SCRIPT = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.unit.test_trackers_sink import Made, pids, step, until
made = Made(Path({folder!r}), {name!r})
made.sink(step(0))
pids(Path({folder!r}))
"""


def script(folder: Path, name: str, then: str) -> subprocess.CompletedProcess[str]:
    text = SCRIPT.format(root=str(ROOT), folder=str(folder), name=name) + then
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_a_training_killed_outright_takes_its_tracker_with_it(tmp_path: Path) -> None:
    done = script(tmp_path, "parent blocks in log", "os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == -signal.SIGKILL
    until(lambda: not any(map(alive, pids(tmp_path))))


def test_a_tracker_that_hangs_does_not_keep_the_interpreter_from_its_exit(tmp_path: Path) -> None:
    done = script(tmp_path, "blocks in log", "until(lambda: 'log' in made.told())")
    assert (done.returncode, done.stderr) == (0, "")
    until(lambda: not any(map(alive, pids(tmp_path))))


def test_a_forked_process_leaves_the_tracker_alone(tmp_path: Path) -> None:
    fork = """
if (child := os.fork()) == 0:
    made.sink.close()
    os._exit(0)
os.waitpid(child, 0)
made.sink(step(1))
made.sink.close()
"""
    done = script(tmp_path, "works", fork)
    assert (done.returncode, done.stderr) == (0, "")
    made = Made(tmp_path)
    assert [at for at, _ in made.points()] == [0, 1]
    assert made.told()[-1] == "end"


def test_an_error_is_said_in_a_line_without_passwords() -> None:
    assert headline(ValueError(f"http://me:{SECRET}@host is gone\nsecond line")) == "ValueError: http://host is gone"
    assert headline(KeyError()) == "KeyError"
    assert len(headline(ValueError("x" * 5000))) < 300
    assert clean(f"http://me:half@{SECRET}@host is gone") == "http://host is gone"  # an @ in the password
    assert clean("mail me@host, http://host/a@b") == "mail me@host, http://host/a@b"
