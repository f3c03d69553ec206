"""However a run ends, its folder says so; and a run that never began leaves nothing."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import squall
from squall import records
from squall.cli.folders import note_ranks_end
from squall.errors import DivergedError, InputError, RunError, UserCodeError
from squall.records import Ended, Record, Stepped
from squall.run import folder
from squall.run.folder import Folder, note_end
from squall.run.result import cause
from squall.training import saved, session
from tests.unit.runs import make_data, make_model, start, summed

_BESIDE = {"recipe.toml", "run.json", "sessions.jsonl"}
FIELDS: dict[str, Any] = {"epochs": 3, "global_batch_size": 8, "worker_batch_size": 4, "lr": 0.1}


class Photos:
    """Sixteen samples, of which one cannot be read, from the second epoch on."""

    def __init__(self, fails_at: int) -> None:
        self.rows, self.reads, self.fails_at = make_data(), 0, fails_at

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        if self.reads == self.fails_at:
            raise KeyError("gooseneck")
        return self.rows[index]


def trained(out: Path, data: Any = None, sinks: Any = (), loss: Any = F.cross_entropy, model: Any = make_model) -> Any:
    task = squall.Task(model=model, loss=loss, train=make_data() if data is None else data)
    return squall.train(task, squall.Recipe(**FIELDS), out=out, sinks=sinks)


def result(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "result.json").read_text())
    return found


def check_ended(out: Path, outcome: str, error: str, step: int) -> None:
    """The folder tells how the run ended, and shows no weights."""
    found = result(out)
    assert found["outcome"] == outcome
    assert error in found["error"]
    assert found[f"{outcome}_at_step"] == step
    assert [key for key in found if "accuracy" in key or "sha256" in key] == ["fingerprint_sha256"]
    last = records.read(out / "records.jsonl")[-1]
    assert (last["kind"], last["outcome"], last["result"]["error"]) == ("ended", outcome, found["error"])
    assert {path.name for path in out.iterdir() if path.is_file()} - _BESIDE == {"records.jsonl", "result.json"}


def test_an_exception_in_mid_run_leaves_its_headline_and_step(tmp_path: Path) -> None:
    seen: list[Record] = []
    fails_at = 16 + 3 + 16 + 9  # the probe, samples whose hash is kept, an epoch, a step
    with pytest.raises(UserCodeError):
        trained(tmp_path / "run", Photos(fails_at), (seen.append,))
    check_ended(tmp_path / "run", "failed", "your code raised KeyError at train[", step=3)
    assert "rank 0 of 1, epoch 2, step 3" in result(tmp_path / "run")["error"]
    assert result(tmp_path / "run")["steps"] == 3
    assert isinstance(seen[-1], Ended)
    assert "try alone" not in seen[-1].advice
    assert (tmp_path / "run" / "recipe.toml").is_file()


def test_ctrl_c_stops_a_run_and_says_so(tmp_path: Path) -> None:
    def interrupts(record: Record) -> None:
        if isinstance(record, Stepped) and record.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run", sinks=(interrupts,))
    check_ended(tmp_path / "run", "stopped", "stopped by Ctrl-C", step=2)


def test_a_full_disk_leaves_what_fits(tmp_path: Path) -> None:
    """Here the system lets no file grow beyond 1,700 bytes: a line of the records is torn."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1700, hard))
    try:
        with pytest.raises(RunError, match="the weights cannot be written to") as error:
            trained(tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.hint.startswith("run it again: ")
    found = result(tmp_path / "run")
    assert found["outcome"] == "failed"
    assert found["error"].startswith("the weights cannot be written")
    kinds = [event["kind"] for event in records.read(tmp_path / "run" / "records.jsonl")]
    assert kinds[:2] == ["started", "step"]
    assert not (tmp_path / "run" / "weights.safetensors").exists()
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_disk_that_takes_nothing_more_hides_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = folder.write_json

    def full(path: Path, values: Any) -> None:
        if path.name != "run.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, values)

    monkeypatch.setattr("squall.run.folder.write_json", full)
    with pytest.raises(UserCodeError, match="KeyError"):
        trained(tmp_path / "run", Photos(fails_at=30))
    assert records.read(tmp_path / "run" / "records.jsonl")[-1]["outcome"] == "failed"


def test_a_sink_that_fails_does_not_keep_the_end_from_the_folder(tmp_path: Path) -> None:
    def closed(record: Record) -> None:
        if isinstance(record, Stepped | Ended):
            raise BrokenPipeError

    with pytest.raises(UserCodeError, match="BrokenPipeError"):
        trained(tmp_path / "run", sinks=(closed,))
    check_ended(tmp_path / "run", "failed", "BrokenPipeError", step=0)


def test_a_run_that_has_its_result_keeps_it_whatever_comes_then(tmp_path: Path) -> None:
    def closed(record: Record) -> None:
        if isinstance(record, Ended):
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        trained(tmp_path / "run", sinks=(closed,))
    assert result(tmp_path / "run")["outcome"] == "finished"
    assert (tmp_path / "run" / "weights.safetensors").is_file()


def fails(*_: Any) -> Any:
    raise KeyError("gooseneck")


def undetermined(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(out.clone().put_(torch.tensor([0]), torch.ones(1)), y)


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        ({"model": fails}, UserCodeError),
        ({"loss": fails}, UserCodeError),
        ({"loss": undetermined}, RunError),
        ({"loss": lambda out, y: out.norm() + out.sum() / len(y)}, InputError),
        ({"data": Photos(fails_at=3)}, UserCodeError),
    ],
    ids=["factory", "loss", "no deterministic kernel", "no loss", "data"],
)
def test_a_run_that_never_began_leaves_nothing(broken: dict[str, Any], error: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(error):
        trained(tmp_path / "run", **broken)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_never_began_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserCodeError):
        trained(tmp_path, model=fails)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


# -- a loop of one's own -------------------------------------------------------------------------------------------


def loop(out: Path, at: Callable[[squall.Run, Any], Any], close: bool = True) -> None:
    model = make_model()
    run = start(model, optimizer := torch.optim.SGD(model.parameters(), lr=0.1), out=out, epochs=3)
    try:
        for step in run.steps(make_data()):
            for inputs, targets in step:
                step.backward(summed(model, inputs, targets))
            optimizer.step()
            if step.index == 2:
                at(run, model)
        run.finish()
    finally:
        run.close()


def test_an_exception_in_ones_own_loop_is_noted_when_the_run_is_closed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        loop(tmp_path / "run", lambda run, model: 1 / 0)
    check_ended(tmp_path / "run", "failed", "ZeroDivisionError: division by zero", step=2)


def test_a_run_that_is_closed_without_finish_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"run.steps cannot go on to step 3: the run has ended"):
        loop(tmp_path / "run", lambda run, model: run.close())
    check_ended(tmp_path / "run", "stopped", "run.finish() was not called", step=2)


def test_a_finish_that_refuses_is_a_failure(tmp_path: Path) -> None:
    def misses(run: squall.Run, model: nn.Module) -> None:
        run.stepper.ledger._counts[0] += 1  # type: ignore[union-attr]

    with pytest.raises(RunError, match="the ledger does not close"):
        loop(tmp_path / "run", misses)
    check_ended(tmp_path / "run", "failed", "the ledger does not close", step=5)


SCRIPT = """
import squall, torch
run = squall.Run("run", epochs=2, global_batch_size=8, worker_batch_size=4)
model, optimizer = run.setup(model := torch.nn.Linear(2, 1), torch.optim.SGD(model.parameters(), lr=0.1))
for step in run.steps([(torch.ones(2), torch.ones(1))] * 16):
    for x, y in step:
        step.backward((model(x) - y).square().sum())
    optimizer.step()
    if step.index == 1:
        {}
"""


@pytest.mark.parametrize(
    ("line", "status", "outcome", "error"),
    [
        ("raise KeyError('gooseneck')", 1, "failed", "KeyError: 'gooseneck'"),
        ("raise KeyboardInterrupt", -2, "stopped", "stopped by Ctrl-C"),
        ("break", 0, "stopped", "run.finish() was not called"),
    ],
)
def test_a_script_that_closes_nothing_leaves_word_too(
    line: str, status: int, outcome: str, error: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(line)], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == status, done.stderr
    check_ended(tmp_path / "run", outcome, error, step=1)


def test_ctrl_c_in_a_script_saves_and_ends_it_as_it_ends_any_program(tmp_path: Path) -> None:
    line = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(line)], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == -signal.SIGINT  # 130 in a shell
    assert done.stderr.splitlines()[-1].startswith("KeyboardInterrupt: stopped by Ctrl-C after step 3; run it again: ")
    assert json.loads((tmp_path / "run/result.json").read_text())["error"] == "stopped by Ctrl-C after step 3"
    assert (tmp_path / "run/checkpoints/step-00000003/manifest.json").is_file()


# -- what a launcher adds ------------------------------------------------------------------------------------------


def begun(path: Path) -> None:
    """What a rank 0 leaves that was killed: records, torn in their last line, and a lock."""
    path.mkdir()
    (path / ".lock").touch()
    (path / "recipe.toml").touch()
    lines = [{"kind": "started", "name": "geese"}, {"kind": "step", "step": 6, "seconds": 2.5}]
    (path / "records.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"kind": "st')


@pytest.mark.parametrize(
    ("status", "message", "outcome", "error"),
    [
        (
            1,
            "squall: rank 0 of 2 was killed by SIGKILL    (exit 1)\n  often ...",
            "failed",
            "rank 0 of 2 was killed by SIGKILL",
        ),
        (
            1,
            "squall: rank 1 failed\nTraceback ...\n  File\nKeyError: 'x'\n  1 other rank",
            "failed",
            "rank 1 failed: KeyError: 'x'",
        ),
        (
            130,
            "squall: stopped by SIGINT; all 2 ranks have ended",
            "stopped",
            "stopped by SIGINT; all 2 ranks have ended",
        ),
    ],
)
def test_a_launcher_completes_what_a_killed_rank_left(
    status: int, message: str, outcome: str, error: str, tmp_path: Path
) -> None:
    begun(tmp_path / "run")
    note_ranks_end(tmp_path / "run", status, message, made=True)
    found = result(tmp_path / "run")
    assert (found["outcome"], found["error"], found["steps"], found["seconds"]) == (outcome, error, 7, 2.5)
    kinds = [event["kind"] for event in records.read(tmp_path / "run" / "records.jsonl")]
    assert kinds == ["started", "step", "ended"]
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_launcher_names_the_error_that_explains_the_one_of_rank_0(tmp_path: Path) -> None:
    begun(tmp_path / "run")
    echo = {"outcome": "failed", "error": "rank 1 was lost", "steps": 7}
    note_end(tmp_path / "run", Ended("failed", "", 1.0, echo))
    note_ranks_end(
        tmp_path / "run", 1, "squall: your code raised KeyError at train[3], rank 1 of 2    (exit 1)", made=True
    )
    assert result(tmp_path / "run") == {**echo, "error": "your code raised KeyError at train[3], rank 1 of 2"}


def test_a_launcher_leaves_finished_and_others_runs_alone(tmp_path: Path) -> None:
    begun(tmp_path / "run")
    other = Folder(tmp_path / "run", ended=True)
    note_ranks_end(tmp_path / "run", 2, "squall: the run folder is in use by another process", made=False)
    assert not (tmp_path / "run" / "result.json").exists()
    other.close()
    finished = {"outcome": "finished", "steps": 7}
    note_end(tmp_path / "run", Ended("finished", "", 1.0, finished))
    note_ranks_end(tmp_path / "run", 1, "squall: rank 1 failed", made=True)
    assert result(tmp_path / "run") == finished


@pytest.mark.parametrize("log", [False, True])
def test_a_launcher_takes_away_what_ranks_left_that_never_began(log: bool, tmp_path: Path) -> None:
    begun(tmp_path / "run")
    (tmp_path / "run" / "records.jsonl").unlink()
    if log:
        (tmp_path / "run" / "rank-1.log").touch()
    note_ranks_end(tmp_path / "run", 1, "squall: ...", made=True)
    assert [path.name for path in tmp_path.rglob("*")] == (["run", "rank-1.log"] if log else [])
    note_ranks_end(tmp_path / "none", 1, "squall: ...", made=True)


# -- reading it again ----------------------------------------------------------------------------------------------


def test_last_is_the_last_run_that_came_to_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trained(Path("runs/good"))
    with pytest.raises(UserCodeError):
        trained(Path("runs/bad"), Photos(fails_at=30))
    os.utime("runs/good/result.json", (time.time() - 60, time.time() - 60))
    assert saved.find("last") == Path("runs/good")
    assert saved.result("bad")["outcome"] == "failed"
    with pytest.raises(InputError, match="runs/bad has no weights") as error:
        squall.load("bad", make_model())
    assert "the run failed" in str(error.value)
    assert "KeyError" in str(error.value)


def test_a_run_without_an_average_of_weights_says_so(tmp_path: Path) -> None:
    trained(tmp_path / "run")
    with pytest.raises(InputError, match="has no averaged weights"):
        squall.load(tmp_path / "run", make_model(), ema=True)


@pytest.mark.parametrize(
    ("error", "outcome", "headline", "advice"),
    [
        (DivergedError("nan", [("to try", "less")]), "diverged", "nan", "less"),
        (RunError("a", [("found", "b")], "see docs"), "failed", "a", "see docs"),
        (MemoryError(), "failed", "MemoryError", ""),
        (ValueError("two\nlines"), "failed", "ValueError: two", ""),
        (SystemExit(3), "failed", "SystemExit: 3", ""),
        (KeyboardInterrupt(), "stopped", "stopped by Ctrl-C", ""),
    ],
)
def test_what_is_noted_of_an_error(error: BaseException, outcome: str, headline: str, advice: str) -> None:
    assert cause(error) == (outcome, headline, advice)


def test_an_error_after_the_last_step_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = session.STRATEGIES["sync"]

    def strategy(run: squall.Run, *rest: Any) -> None:
        sync(run, *rest)
        raise AssertionError("too late")

    monkeypatch.setitem(session.STRATEGIES, "sync", strategy)
    with pytest.raises(UserCodeError):
        trained(tmp_path / "run")
    check_ended(tmp_path / "run", "failed", "AssertionError", step=5)
