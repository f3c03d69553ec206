"""MLflow and Weights & Biases themselves, into files: what they hold after a run, after a resumed one, and what not.

Each runs in the tracker's own process; this one never imports them. Their address for anything on the network is a
listener of the test, which nobody may call.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from squall.records import Ended, EpochEnded, Logged, SessionEnded, Stepped
from squall.run import trackers
from squall.run.tracker import Tracker
from tests.unit.test_trackers_sink import alive, until

PATIENCE_S = 60.0
SECRET = "geheim-4711"


@pytest.fixture(autouse=True)
def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A home and settings of the test's own; every way to the network leads to a socket that never answers."""
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "WANDB_"))]:
        monkeypatch.delenv(name)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "WANDB_BASE_URL"):
            monkeypatch.setenv(name, address)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.chdir(tmp_path)
        yield server


def called(server: socket.socket) -> bool:
    try:
        server.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def made(name: str, folder: Path, said: list[str], start_step: int = 0, close_s: float = PATIENCE_S) -> Tracker:
    folder.mkdir(exist_ok=True)
    config = {"epochs": 4, "lr": {"base": 0.1}}
    (tracker,) = trackers.make(
        [name],
        folder=folder,
        name="digits-1120",
        config=config,
        start_step=start_step,
        warn=said.append,
        close_s=close_s,
    )
    return tracker


def train(sink: Tracker, start: int, end: int) -> None:
    """Steps of a second each, ten an epoch."""
    for step in range(start, end):
        sink(Stepped(step, step // 10, 8, 1 / (step + 1), 0.1, float(step)))
        if step % 10 == 9:
            sink(Logged(step + 1, step // 10, {"mine": 2.0, "F1 (macro)": 0.25}))
            spent = {"data": 0.5}
            sink(EpochEnded(step // 10, step, 1.0, 0.1, 100.0, spent, 1.0, test={"accuracy": step / 100}))


def finish(sink: Tracker) -> None:
    sink(Ended("finished", "", 4.0, {"test_accuracy": 0.39, "weights_sha256": "a0b1", "error": SECRET}))
    sink.close()


def rows(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(query).fetchall()


def test_an_mlflow_run_that_was_killed_goes_on_as_the_same_run_with_each_step_once(
    tmp_path: Path, listener: socket.socket
) -> None:
    said: list[str] = []
    first = made("mlflow", tmp_path / "run", said)
    train(first, 0, 15)
    first(SessionEnded(0.0, 15, "stopped", "SIGTERM"))
    first.close()
    database = tmp_path / "mlflow.db"
    assert rows(database, "select status from runs") == [("KILLED",)]

    again = made("mlflow", tmp_path / "run", said, start_step=10)
    train(again, 10, 40)
    finish(again)
    assert said == []
    ((run, name, status, user, source),) = rows(
        database, "select run_uuid, name, status, user_id, source_name from runs"
    )
    assert (name, status, user, source) == ("digits-1120", "FINISHED", "unknown", "")
    assert trackers.Known(tmp_path / "run").get("mlflow") == run
    assert rows(database, "select name from experiments where experiment_id != 0") == [("squall",)]
    assert sorted(rows(database, "select key, value from params")) == [("epochs", "4"), ("lr.base", "0.1")]
    steps = rows(database, "select step, value from metrics where key = 'step/loss' order by step")
    assert steps == [(step, 1 / (step + 1)) for step in range(40)]
    for key in ("test/accuracy", "log/mine", "log/F1 _macro_"):
        assert rows(database, f"select step from metrics where key = '{key}' order by step") == [
            (9,),
            (19,),
            (29,),
            (39,),
        ]
    assert rows(database, "select value, step from metrics where key = 'result/test_accuracy'") == [(0.39, 39)]
    assert dict(rows(database, "select key, value from tags")) == {
        "mlflow.runName": "digits-1120",
        "squall.outcome": "finished",
        "squall.resumed_at": "10",
        "squall.weights_sha256": "a0b1",
    }
    assert SECRET.encode() not in database.read_bytes()
    assert not called(listener)


def test_an_mlflow_run_that_the_store_does_not_know_becomes_a_new_one(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "run").mkdir()
    trackers.Known(tmp_path / "run").keep("mlflow", "0" * 32)
    sink = made("mlflow", tmp_path / "run", said)
    train(sink, 0, 3)
    finish(sink)
    assert said == []
    assert rows(tmp_path / "mlflow.db", "select run_uuid from runs") == [
        (trackers.Known(tmp_path / "run").get("mlflow"),)
    ]


def test_wandb_offline_keeps_a_run_in_its_folder_and_calls_nobody(
    tmp_path: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    said: list[str] = []
    identities = set()
    for start in (0, 20):
        sink = made("wandb", tmp_path / "run", said, start_step=start)
        second = int(time.time())
        train(sink, start, start + 20)
        finish(sink)
        while int(time.time()) == second:  # it names its folder by the second; a session of ours takes longer
            time.sleep(0.01)
        identities.add(trackers.Known(tmp_path / "run").get("wandb"))
    assert said == []
    (identity,) = identities
    sessions = sorted((tmp_path / "run" / "wandb").glob(f"offline-run-*-{identity}/run-{identity}.wandb"))
    assert len(sessions) == 2
    for session in sessions:
        held = session.read_bytes()
        for word in (b"step/loss", b"test/accuracy", b"log/F1 (macro)", b"lr.base", b"digits-1120", b"a0b1", b"squall"):
            assert word in held
        for word in (SECRET, "a" * 40, "pytest", str(tmp_path)):
            assert word.encode() not in held, word
        assert list((session.parent / "files").iterdir()) == []
    assert not called(listener)


def test_wandb_without_a_key_is_off_with_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    said: list[str] = []
    sink = made("wandb", tmp_path / "run", said)
    train(sink, 0, 10)
    finish(sink)
    (word,) = said
    assert word.startswith("wandb is off: UsageError: No API key configured.")
    assert "UsageError" in (tmp_path / "run" / "logs" / "wandb.log").read_text()


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_server_that_never_answers_is_given_up(
    name: str, tmp_path: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{listener.getsockname()[1]}")
    for proxy in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(proxy)
    said: list[str] = []
    sink = made(name, tmp_path / "run", said, close_s=0.25)
    train(sink, 0, 40)
    until(lambda: called(listener))
    train(sink, 40, 80)
    child = sink._child
    assert child is not None
    finish(sink)
    assert said == [f"{name} did not take its last values within 0.25 s"]
    assert not alive(child._process.pid)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("squall-tracker")]
