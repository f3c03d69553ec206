"""`squall runs resize --replicas`: a run that is just beginning or resuming is asked once it has begun."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from squall.cli import asking
from squall.records import Resized, SessionBegan, SessionEnded
from squall.run import requests
from squall.run.requests import Request
from tests.fabricated import NOON
from tests.fabricated_downpour import Replicated
from tests.unit import made_runs as made
from tests.unit.test_runs_asking import DEADLINE_S, beside, running, said


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Replicated(until=30, outcome=None).write(Path("runs/one"))


def began(at: float) -> SessionBegan:
    return SessionBegan(NOON + at, "node-7", 4243, 4, 30, {}, "0.1.0")


def resized(folder: Path, replicas: int) -> None:
    made.write(folder / "sessions.jsonl", Resized(9.0, replicas, 4))


def asked_after(folder: Path, moment: threading.Event) -> None:
    """A run that looks for requests from some moment on, and follows the first."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        found = requests.waiting(folder)
        if moment.is_set() and found is not None:
            requests.take_away(folder)
            resized(folder, found.replicas)
            return
        time.sleep(0.01)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_run_that_is_just_beginning_is_asked_once_it_has_begun(
    resumed: bool, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if resumed:
        made.write(folder / "sessions.jsonl", SessionEnded(NOON + 9, 30, "stopped", "stopped on request"))
    else:
        (folder / "sessions.jsonl").write_text("")
    early: list[Request | None] = []
    moment = threading.Event()

    def begins(end: threading.Event) -> None:
        end.wait(0.5)  # longer than whoever asks takes to look once
        early.append(requests.waiting(folder))
        made.write(folder / "sessions.jsonl", began(10))
        moment.set()
        asked_after(folder, moment)

    with running(folder), beside(begins):
        out = said(capsys, "runs", "resize", "one", "--replicas", "6")
    assert early == [None]  # what is asked by then would be forgotten
    assert out == "one goes on with 6 replicas, at minibatch 30 of 120\n"


def test_a_request_that_a_run_forgets_as_it_begins_is_left_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def begins(end: threading.Event) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while requests.waiting(folder) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        requests.take_away(folder)
        made.write(folder / "sessions.jsonl", began(10))
        moment = threading.Event()
        moment.set()
        asked_after(folder, moment)

    with running(folder), beside(begins):
        assert "one goes on with 6 replicas" in said(capsys, "runs", "resize", "one", "--replicas", "6")


def test_a_run_that_takes_long_to_begin_is_no_lock_step_one(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "_BEGINS_S", 0.2)
    for name in ("records.jsonl", "sessions.jsonl"):
        (folder / name).unlink()
    (folder / "run.json").write_text("{}")
    with running(folder):
        err = said(capsys, "runs", "resize", "one", "--replicas", "6", status=2)
    assert "one is just beginning" in err
    assert "strategy" not in err
