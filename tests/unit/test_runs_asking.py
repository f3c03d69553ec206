"""`squall runs stop` and `resize`: what is asked of a run, and what is said of what came of it."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from squall.cli import asking
from squall.cli.main import main
from squall.errors import InputError
from squall.records import SessionEnded
from squall.run import requests
from squall.run.requests import Request
from tests.unit import made_runs as made

RECIPE = 'name = "digits"\nepochs = 30\nglobal_batch_size = 128\nworker_batch_size = 16\nlr = 0.1\n'
DEADLINE_S = 30.0


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folder() -> Path:
    made_ = made.make(Path("runs") / "one")
    (made_ / "recipe.toml").write_text(RECIPE)
    return made_


@contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Work that goes on in a thread until it ends by itself, or is told to."""
    end = threading.Event()
    thread = threading.Thread(target=work, args=(end,))
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


@contextmanager
def running(
    folder: Path, follow: Callable[[Request], None] | None = None, *, takes_away: bool = True
) -> Iterator[None]:
    """A run: holds the lock, follows the first request, gives the lock back at the end."""
    held = made.taken(folder)

    def work(end: threading.Event) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not end.wait(0.02) and time.monotonic() < deadline:
            if follow is not None and (asked := requests.waiting(folder)) is not None:
                if takes_away:
                    requests.take_away(folder)
                follow(asked)
                break
        held.close()

    with beside(work):
        yield


def stops(folder: Path) -> Callable[[Request], None]:
    def follow(asked: Request) -> None:
        assert asked == Request("stop")
        made.checkpoint(folder, 31)
        made.write(folder / "records.jsonl", made.stepped(30))
        made.write(folder / "sessions.jsonl", SessionEnded(made.NOW + 9, 31, "stopped", "asked to stop"))

    return follow


def said(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    assert main(arguments) == status
    out, err = capsys.readouterr()
    return out if status == 0 else err


# -- stop ----------------------------------------------------------------------------------------------------------


def test_a_run_that_is_asked_to_stop_is_waited_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(folder, stops(folder)):
        assert main(["runs", "stop", "one", "--timeout", "30"]) == 0
    out, err = capsys.readouterr()
    assert out == "one stopped at step 31 of 360, saved at step 31      squall resume one\n"
    assert err == "one saves and stops ...\n"


def test_the_answer_as_json_is_the_run_as_it_is_then(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(folder, stops(folder)):
        found = json.loads(said(capsys, "runs", "stop", "last", "--json"))
    assert (found["state"], found["checkpoint"], found["resumable"]) == ("stopped", 31, True)


def test_whoever_does_not_wait_leaves_the_request(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(folder):
        assert "one is asked to save and stop" in said(capsys, "runs", "stop", "one", "--no-wait")
        assert requests.waiting(folder) == Request("stop")


@pytest.mark.parametrize(
    ("outcome", "words"),
    [("finished", "one is not running: it finished at step 360 of 360"), ("stopped", "it stopped at step 12 of 360")],
)
def test_a_run_that_ended_well_is_a_word_and_no_error(
    outcome: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made.make(Path("runs/one"), 360, result={"outcome": outcome, "steps": 360 if outcome == "finished" else 12})
    assert words in said(capsys, "runs", "stop", "one")
    assert not (Path("runs/one") / requests.FILE).exists()


@pytest.mark.parametrize("outcome", ["failed", "diverged", "killed"])
def test_a_run_that_ended_otherwise_is_one_error(outcome: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made.make(Path("runs/one"), 30, result=None if outcome == "killed" else {"outcome": outcome, "steps": 30})
    made.checkpoint(folder, 24)
    err = said(capsys, "runs", "stop", "one", status=2)
    assert err.startswith("squall: one is not running")
    assert f"{'was killed' if outcome == 'killed' else outcome} at step 30 of 360" in err
    assert ("squall resume one" in err) == (outcome != "diverged")
    assert "(exit 2)" in err


def test_a_run_that_waits_in_a_queue_is_cancelled_there(capsys: pytest.CaptureFixture[str]) -> None:
    (Path("runs/one/slurm")).mkdir(parents=True)
    Path("runs/one/slurm/job.json").write_text('{"job": "81234"}')
    assert "scancel 81234" in said(capsys, "runs", "stop", "one", status=2)
    folder = made.make(Path("runs/two"), 12, result={"outcome": "stopped", "steps": 12})
    (folder / ".job").write_text("81235\n")
    err = said(capsys, "runs", "stop", "two", status=2)
    assert "it stopped at step 12 of 360, and waits to come again as job 81235" in err
    assert "scancel 81235" in err


def test_a_request_that_a_dying_run_did_not_follow_is_taken_away(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(folder) as _:
        monkeypatch.setattr(asking, "wait", _dies(folder, asking.wait))
        err = said(capsys, "runs", "stop", "one", status=1)
    assert "one was killed at step 30 of 360 instead of stopping" in err
    assert not (folder / requests.FILE).exists()


def _dies(folder: Path, wait: Callable[..., object]) -> Callable[..., object]:
    """The run is killed once the request is there: its lock is free, and nothing else changes."""

    def waits(*arguments: object) -> object:
        assert requests.waiting(folder) == Request("stop")
        (folder / ".lock").unlink()
        return wait(*arguments)

    return waits


def test_a_request_that_processes_forget_as_they_begin_is_left_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def begins_then_stops(asked: Request) -> None:
        assert requests.waiting(folder) is None
        made.write(folder / "sessions.jsonl", made.session(made.NOW + 1))
        deadline = time.monotonic() + DEADLINE_S
        while requests.waiting(folder) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert requests.waiting(folder) == Request("stop")
        requests.take_away(folder)
        stops(folder)(asked)

    with running(folder, begins_then_stops):
        assert "one stopped at step 31" in said(capsys, "runs", "stop", "one")
    assert requests.waiting(folder) is None


def test_a_stopped_run_is_no_jobs_any_more(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / ".job").write_text("81234\n")
    with running(folder, stops(folder)):
        said(capsys, "runs", "stop", "one")
    assert not (folder / ".job").exists()  # its batch script sees that, and does not ask for its place again


def test_a_run_that_finishes_meanwhile_is_told_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def finishes(asked: Request) -> None:
        (folder / "result.json").write_text(json.dumps(made.FINISHED))

    with running(folder, finishes, takes_away=False):
        out = said(capsys, "runs", "stop", "one")
    assert out == "one finished before it looked at the request: step 360 of 360\n"
    assert not (folder / requests.FILE).exists()


def test_a_run_that_does_not_leave_in_time_is_an_error_and_the_request_stays(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(folder):
        err = said(capsys, "runs", "stop", "one", "--timeout", "1", status=1)
        assert requests.waiting(folder) == Request("stop")
    assert "one still runs after 1 s" in err


def test_a_folder_that_cannot_be_written_is_one_error(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(requests, "write_json", full)
    with running(folder):
        assert "No space left on device" in said(capsys, "runs", "stop", "one", status=2)


# -- resize --------------------------------------------------------------------------------------------------------


def test_a_resized_run_goes_on_with_other_processes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def resizes(asked: Request) -> None:
        assert asked == Request("resize", 4)
        made.write(folder / "sessions.jsonl", SessionEnded(made.NOW + 9, 31, "stopped", "asked to resize"))
        made.write(folder / "sessions.jsonl", made.session(made.NOW + 10, 31, processes=4))

    with running(folder, resizes), _kept(folder):
        out = said(capsys, "runs", "resize", "one", "--processes", "4")
    assert out == "one goes on from step 31 with 4 processes\n"


@pytest.mark.parametrize("resumed", [False, True])
def test_a_run_that_is_just_beginning_is_asked_once_it_has_begun(
    resumed: bool, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if resumed:
        made.write(folder / "sessions.jsonl", SessionEnded(made.NOW + 9, 31, "stopped", "asked to stop"))
    else:
        (folder / "sessions.jsonl").write_text("")

    early = []

    def begins(end: threading.Event) -> None:
        end.wait(0.5)  # longer than whoever asks takes to look once
        early.append(requests.waiting(folder))
        made.write(folder / "sessions.jsonl", made.session(made.NOW + 10))

    def resizes(asked: Request) -> None:
        made.write(folder / "sessions.jsonl", SessionEnded(made.NOW + 19, 31, "stopped", "asked to resize"))
        made.write(folder / "sessions.jsonl", made.session(made.NOW + 20, 31, processes=4))

    def waits(asked: Request) -> None:
        assert asked == Request("resize", 4)
        while not early:
            time.sleep(0.01)
        resizes(asked)

    with running(folder, waits, takes_away=False), beside(begins), _kept(folder):
        out = said(capsys, "runs", "resize", "one", "--processes", "4")
    assert early == [None]  # what is asked by then would be forgotten
    assert out == "one goes on from step 31 with 4 processes\n"


def test_a_run_that_nobody_would_start_again_is_not_stopped_for_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made.write(folder / "sessions.jsonl", dataclasses.replace(made.session(made.NOW + 1), launched=False))
    with running(folder):
        err = said(capsys, "runs", "resize", "one", "--processes", "4", status=2)
        assert requests.waiting(folder) is None
    assert "one cannot change its processes" in err
    assert "nobody would start it again" in err
    assert "squall runs stop one, then start it with 4 processes" in err


@contextmanager
def _kept(folder: Path) -> Iterator[None]:
    """The ranks that come next hold the lock."""

    def work(end: threading.Event) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not end.wait(0.005) and time.monotonic() < deadline:
            with suppress(InputError):  # those before them have it still
                held = made.taken(folder)
                end.wait(DEADLINE_S)
                held.close()

    with beside(work):
        yield


def test_a_run_whose_launcher_bounds_its_processes_is_told_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def resizes(asked: Request) -> None:
        made.write(folder / "sessions.jsonl", made.session(made.NOW + 10, 31, processes=3))

    with running(folder, resizes), _kept(folder):
        err = said(capsys, "runs", "resize", "one", "--processes", "4", status=1)
    assert "one does not go on with 4 processes" in err
    assert "it goes on with 3 processes" in err
    assert "squall resume" not in err


def test_a_run_that_nobody_starts_again_says_how_to(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "_STARTS_AGAIN_S", 0.3)
    made.checkpoint(folder, 24)
    with running(folder, lambda asked: None):
        err = said(capsys, "runs", "resize", "one", "-P", "4", status=1)
    assert "one does not go on with 4 processes" in err
    assert "squall resume one --processes 4" in err


def test_more_processes_than_passes_are_refused_before_the_run_leaves(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(folder):
        assert "9 processes are more than the 8 passes" in said(capsys, "runs", "resize", "one", "-P", "9", status=2)
        assert requests.waiting(folder) is None


def test_a_job_of_slurm_keeps_its_processes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / ".job").write_text("81234\n")
    with running(folder):
        err = said(capsys, "runs", "resize", "one", "-P", "4", status=2)
    assert "job 81234 has 2 processes" in err
    assert (folder / ".job").exists()
    assert "submit it again with the same --out" in err


def test_the_same_number_is_a_word_and_a_run_that_does_not_run_an_error(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(folder):
        assert said(capsys, "runs", "resize", "one", "-P", "2") == "one has 2 processes already\n"
    made.checkpoint(folder, 24)
    assert "squall resume one --processes 4" in said(capsys, "runs", "resize", "one", "-P", "4", status=2)
    assert "--processes" in said(capsys, "runs", "resize", "one", status=2)
