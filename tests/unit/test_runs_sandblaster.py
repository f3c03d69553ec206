"""`squall runs` of runs of batch optimisation: iterations and evaluations, where others have epochs and steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from squall.cli import overview, states
from squall.cli.main import main
from squall.errors import InputError
from squall.recipe import load
from squall.records import EpochEnded, Resized, SaveFailed, SessionBegan, SessionEnded, Started
from squall.run import requests
from squall.run.requests import Request
from squall.training import train
from tests.fabricated import NOON
from tests.unit import made_runs as made
from tests.unit.test_runs_asking import running, said

REPLICAS, SHARDS, BUDGET = 3, 2, 40


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def started(**values: Any) -> Started:
    roles = {"processes": REPLICAS, "replicas": REPLICAS, "shards": SHARDS, "strategy": "sandblaster"}
    return made.started(num_steps=BUDGET, epochs=BUDGET, steps_per_epoch=1, **{**roles, **values})


def iterated(iteration: int, **values: Any) -> EpochEnded:
    """The record of an iteration, counted from 1; the first and the fourth take one evaluation more than the others."""
    evaluations = iteration + 1 + (iteration > 3)
    given: dict[str, Any] = {
        "epoch": iteration - 1,
        "step": evaluations - 1,
        "train_loss": 2.0 / iteration,
        "lr": 1.0,
        "samples_per_second": 900.0 + iteration,
        "spent": {"compute": 3.0, "communication": 0.2},
        "seconds": 1.5 * evaluations,
        "test": {"accuracy": 0.5 + 0.01 * iteration, "loss": 1.0},
    }
    return EpochEnded(**{**given, **values})


def began(at: float = 0.0, iteration: int = 0) -> SessionBegan:
    return SessionBegan(NOON + at, "node-7", 4242, REPLICAS, iteration, {}, "0.1.0")


def make(iterations: int, result: dict[str, Any] | None = None) -> Path:
    """A run of so many iterations; killed, unless it has a result."""
    folder = Path("runs/one")
    made.write(folder / "records.jsonl", started(), *(iterated(number) for number in range(1, iterations + 1)))
    made.write(folder / "sessions.jsonl", began())
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def snapshots(folder: Path, number: int, iterations: int, *, whole: bool = True) -> None:
    """A set that the shards have saved, with the pair that came since the one before."""
    server = folder / "server"
    server.mkdir(exist_ok=True)
    for shard in range(SHARDS):
        (server / f"shard-{shard}-{number:06}.safetensors").write_bytes(b"0" * 100_000)
        (server / f"pairs-{shard}-{number:06}.safetensors").write_bytes(b"0" * 200_000)
    if whole:
        (server / f"{number:06}.json").write_text(json.dumps({"settled": iterations, "records": 17}))


FINISHED = {
    "outcome": "finished",
    "steps": 12,
    "iterations": 12,
    "evaluations": 15,
    "seconds": 65.0,
    "samples_per_second": 880.0,
    "test_accuracy": 0.975,
    "minimum": {"outcome": "converged", "why": "the gradient's norm 9.1e-06 is within 1e-05", "advice": ""},
}


def test_a_finished_run_says_its_iterations_and_evaluations_and_why_it_went_no_further(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = states.look(make(12, FINISHED))
    assert (found.step, found.evaluations, found.budget) == (12, 15, BUDGET)
    assert (found.epoch, found.epochs, found.steps) == (None, None, None)
    assert (found.processes, found.shards) == (REPLICAS, SHARDS)
    line = overview.table([found], NOON + 120)[1]
    assert "finished   15/40     12   test accuracy 97.50 %   3 replicas         880" in line
    assert main(["runs", "show", "one"]) == 0
    out = capsys.readouterr().out
    assert "state      finished: converged, the gradient's norm 9.1e-06 is within 1e-05\n" in out
    assert "reached    iteration 12, 15 of 40 evaluations\n" in out
    assert "replicas   3 and 2 shards, 880 samples/s\n" in out
    assert [line for line in out.splitlines() if "epoch" in line or " step " in line or "process" in line] == []


def test_a_killed_run_is_where_its_last_iteration_is_and_goes_on_from_its_newest_whole_set() -> None:
    folder = make(12)
    assert not states.look(folder).resumable
    snapshots(folder, 1, 11)
    snapshots(folder, 2, 12, whole=False)
    found = states.look(folder)
    assert (found.state, found.step, found.evaluations, found.checkpoint) == ("killed", 12, 14, 11)
    assert found.resumable
    assert found.score == ("test accuracy", pytest.approx(0.62))
    assert (found.seconds, found.samples_per_second) == (21.0, 912.0)
    assert "killed, resume   14/40     12" in overview.table([found], NOON + 9)[1]


def test_without_a_test_set_the_loss_is_what_it_reached() -> None:
    folder = make(3)
    made.write(folder / "records.jsonl", iterated(4, test={}))
    assert states.look(folder).score == ("train loss", pytest.approx(0.5))


def test_before_its_first_iteration_nothing_is_reached(capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(0)
    with running(folder):
        found = states.look(folder)
        assert (found.step, found.evaluations, found.score, found.seconds) == (0, 0, None, None)
        assert "reached    iteration 0, 0 of 40 evaluations\n" in said(capsys, "runs", "show", "one")


def test_sessions_and_checkpoints_are_told_in_iterations(capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(12)
    snapshots(folder, 1, 4)
    snapshots(folder, 2, 11)
    made.write(
        folder / "sessions.jsonl",
        SaveFailed(5, "No space left on device", 4),
        SessionEnded(NOON + 6, 11, "stopped", "stopped by Ctrl-C after iteration 11"),
        began(9, 11),
    )
    lines = said(capsys, "runs", "show", "one").splitlines()
    assert "notable       iteration 5 could not be saved: No space left on device" in lines
    assert lines[-5].endswith("3 replicas   from iteration 0   stopped by Ctrl-C after iteration 11")
    assert lines[-4].endswith("3 replicas   from iteration 11   killed")
    # the second set needs the pairs of the first, too
    checkpoints = [[part.strip() for part in line.split("   ")][-3:-1] for line in lines[-2:]]
    assert checkpoints == [["iteration 11", "1.0 MB"], ["iteration 4", "0.6 MB"]]


def test_the_json_has_the_numbers_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    snapshots(make(12), 1, 11)
    found = json.loads(said(capsys, "runs", "show", "one", "--json"))
    names = ("strategy", "step", "evaluations", "budget", "processes", "shards", "checkpoint")
    assert [found[name] for name in names] == ["sandblaster", 12, 14, BUDGET, REPLICAS, SHARDS, 11]
    assert (found["epoch"], found["epochs"], found["steps"]) == (None, None, None)


def test_a_run_that_is_asked_to_stop_says_which_iteration_it_saved(capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(12)

    def stops(asked: Request) -> None:
        assert asked == Request("stop")
        made.write(folder / "records.jsonl", iterated(13))
        made.write(folder / "sessions.jsonl", SessionEnded(NOON + 9, 13, "stopped", "stopped on request"))
        snapshots(folder, 3, 13)

    with running(folder, stops):
        out = said(capsys, "runs", "stop", "one")
    assert out == "one stopped at iteration 13, 15 of 40 evaluations, saved at iteration 13      squall resume one\n"


def test_a_run_that_broke_off_instead_of_stopping_says_where_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(12)
    snapshots(folder, 1, 11)
    with running(folder, lambda asked: None):
        err = said(capsys, "runs", "stop", "one", status=1)
    assert "one was killed at iteration 12, 14 of 40 evaluations instead of stopping" in err
    assert "squall resume one: from iteration 11" in err


def test_replicas_join_and_leave_while_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(12)

    def resizes(asked: Request) -> None:
        assert asked == Request("resize", replicas=5)
        made.write(folder / "sessions.jsonl", Resized(9.0, 5, REPLICAS))

    with running(folder, resizes):
        assert said(capsys, "runs", "resize", "one", "--replicas", "3") == "one has 3 replicas already\n"
        out = said(capsys, "runs", "resize", "one", "--replicas", "5")
    assert out == "one goes on with 5 replicas, at iteration 12, 14 of 40 evaluations\n"
    assert states.look(folder).processes == 5


def test_it_has_no_processes_to_be_resized_to(capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(12)
    with running(folder):
        err = said(capsys, "runs", "resize", "one", "--processes", "5", status=2)
        assert requests.waiting(folder) is None
    assert "--processes 5 of a run with strategy=sandblaster" in err
    assert "squall runs resize one --replicas 5" in err


def test_a_synchronous_run_has_no_replicas(capsys: pytest.CaptureFixture[str]) -> None:
    with running(made.make(Path("runs/one"))):
        err = said(capsys, "runs", "resize", "one", "--replicas", "5", status=2)
    assert "--replicas 5 of a run with strategy=sync" in err
    assert "downpour, sandblaster" in err
    assert "squall runs resize one --processes 5" in err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--processes", "2"], ["--processes with strategy=sandblaster", "leave it away; sandblaster.replicas=2"]),
        (["--timeout", "20"], ["nobody waits for a dead replica; sandblaster.lease_timeout says"]),
    ],
)
def test_flags_of_lock_step_training_are_refused_by_the_keys_of_its_own_table(
    given: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    err = said(capsys, "train", "digits-sandblaster", *given, status=2)
    assert [word for word in words if word not in err] == []
    assert "downpour" not in err


def test_ranks_of_a_job_are_told_the_replicas_of_its_own_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "3"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    err = said(capsys, "train", "digits-sandblaster", status=2)
    assert "start it once, with sandblaster.replicas=3" in err


def test_an_engine_for_a_synchronous_recipe_names_both_strategies_that_have_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    err = said(capsys, "train", "digits", "--engine", "simulated", status=2)
    assert "strategy=downpour downpour.replicas=4" in err
    assert "strategy=sandblaster sandblaster.replicas=4" in err
    with pytest.raises(InputError, match="strategy=downpour, or strategy=sandblaster"):
        train(None, load("digits"), engine="ray")
