"""What a run leaves behind, what it refuses to write into, and the numbers of its result."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import statistics
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

import squall
from squall import records
from squall.cli import folders
from squall.errors import DivergedError, InputError
from squall.recipe import load as load_recipe
from squall.records import SPENT
from squall.run import mean_and_std, median_of_last
from squall.run.folder import Folder, make
from tests.unit.runs import CLASSES, make_data, make_model, summed, train

FIELDS: dict[str, Any] = {"epochs": 7, "global_batch_size": 8, "worker_batch_size": 4, "lr": 0.1}
ISSUE = [
    "test_accuracy",
    "test_error_median_last5",
    "train_loss",
    "samples_per_second",
    "seconds",
    "peak_rss_bytes",
    "weights_sha256",
    "processes",
    "global_batch_size",
    "worker_batch_size",
    "steps",
    "ledger",
    "versions",
    "commit",
]


def normalised() -> nn.Module:
    return make_model(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))


def trained(out: Path, **fields: Any) -> squall.Result:
    task = squall.Task(model=normalised, loss=F.cross_entropy, train=make_data(18), test=make_data(30), name="flowers")
    return squall.train(task, squall.Recipe(**{**FIELDS, **fields}), out=out)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[squall.Result, Path]:
    out = tmp_path_factory.mktemp("runs") / "flowers"
    return trained(out, ema=0.9), out


def test_the_folder_holds_recipe_records_weights_and_result(finished: tuple[squall.Result, Path]) -> None:
    names = {path.name for path in finished[1].iterdir() if path.is_file()}
    assert names == {
        *("recipe.toml", "run.json", "records.jsonl", "sessions.jsonl", "result.json"),
        *("weights.safetensors", "ema.safetensors"),
    }


def test_result_json_has_what_was_asked_for(finished: tuple[squall.Result, Path]) -> None:
    result, out = finished
    found = json.loads((out / "result.json").read_text())
    assert [key for key in ISSUE if found.get(key) is None and key != "commit"] == []
    assert "commit" in found
    assert found["outcome"] == "finished"
    assert found["processes"] == 1
    assert found["steps"] == 21
    assert found["global_batch_size"] == 8
    assert found["worker_batch_size"] == 4
    assert found["ledger"]["samples"] == 18 * 7
    assert found["ledger"]["least"] == found["ledger"]["most"] == 7
    assert found["ledger"]["complete"] is True
    assert found["versions"]["torch"] == torch.__version__
    assert found["peak_rss_bytes"] > 50 << 20
    assert found["test_accuracy"] == result.test["accuracy"]
    assert found["train_loss"] == result.train["loss"]
    assert found == json.loads(json.dumps(dict(result.values)))


def test_the_records_tell_the_whole_run(finished: tuple[squall.Result, Path]) -> None:
    result, out = finished
    events = records.read(out / "records.jsonl")
    kinds = [event["kind"] for event in events]
    assert kinds[0] == "started"
    assert kinds[-1] == "ended"
    assert kinds.count("step") == 21
    assert kinds.count("epoch") == 7
    steps = [event for event in events if event["kind"] == "step"]
    assert [event["step"] for event in steps] == list(range(21))
    assert [event["samples"] for event in steps[:3]] == [8, 8, 2]
    assert {event["lr"] for event in steps} == {0.1}
    epochs = [event for event in events if event["kind"] == "epoch"]
    for number, epoch in enumerate(epochs):
        losses = [(event["loss"], event["samples"]) for event in steps if event["epoch"] == number]
        assert epoch["train_loss"] == pytest.approx(sum(a * n for a, n in losses) / 18, rel=1e-12)
        assert set(epoch["spent"]) == set(SPENT)
        assert all(seconds >= 0 for seconds in epoch["spent"].values())
    assert events[-1]["result"]["weights_sha256"] == result.values["weights_sha256"]


def test_g9_the_error_is_the_median_of_the_last_five_epochs(finished: tuple[squall.Result, Path]) -> None:
    result, out = finished
    errors = [
        1 - event["test"]["accuracy"] for event in records.read(out / "records.jsonl") if event["kind"] == "epoch"
    ]
    assert len(errors) == 7
    assert result.values["test_error_median_last5"] == sorted(errors[-5:])[2]


@pytest.mark.parametrize(
    ("errors", "median"),
    [
        ([0.9, 0.8, 0.5, 0.1, 0.4, 0.2, 0.3], 0.3),
        ([0.3, 0.1], 0.2),
        ([0.7], 0.7),
    ],
)
def test_g9_median_of_the_last_five(errors: list[float], median: float) -> None:
    assert median_of_last(errors) == pytest.approx(median)


def test_g9_spread_over_seeds_has_n_minus_1_and_needs_three() -> None:
    values = [23.60, 23.48, 23.74]
    mean, std = mean_and_std(values)
    assert mean == pytest.approx(sum(values) / 3)
    assert std == pytest.approx((sum((v - mean) ** 2 for v in values) / 2) ** 0.5)
    assert std == pytest.approx(statistics.pstdev(values) * (3 / 2) ** 0.5)
    with pytest.raises(ValueError, match="2 runs: mean and std need three or more"):
        mean_and_std(values[:2])


def test_running_the_written_recipe_again_gives_the_same_weights(
    finished: tuple[squall.Result, Path], tmp_path: Path
) -> None:
    recipe = load_recipe(finished[1] / "recipe.toml")
    task = squall.Task(model=normalised, loss=F.cross_entropy, train=make_data(18), test=make_data(30))
    again = squall.train(task, recipe, out=tmp_path / "again")
    assert again.values["weights_sha256"] == finished[0].values["weights_sha256"]


def test_the_hash_is_over_the_plain_bytes_of_the_saved_parameters(finished: tuple[squall.Result, Path]) -> None:
    saved = load_file(finished[1] / "weights.safetensors")
    assert set(saved) == set(normalised().state_dict())
    digest = hashlib.sha256()
    for name in sorted(name for name, _ in normalised().named_parameters()):
        digest.update(saved[name].contiguous().numpy().tobytes())
    assert digest.hexdigest() == finished[0].values["weights_sha256"]


def test_weights_and_averages_load_back(finished: tuple[squall.Result, Path]) -> None:
    plain = squall.load(finished[1], normalised(), ema=False)
    averaged = squall.load(finished[1], normalised())
    assert not plain.training
    assert not torch.equal(plain[0].weight, averaged[0].weight)
    with torch.no_grad():
        scores = averaged(torch.stack([row for row, _ in make_data(30)]))
    labels = torch.tensor([label for _, label in make_data(30)])
    assert float((scores.argmax(1) == labels).double().mean()) == finished[0].test["accuracy"]


def test_a_run_of_ones_own_loop_writes_and_logs(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "mine"
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = squall.Run(out, epochs=2, global_batch_size=8, worker_batch_size=4)
    run.setup(model, optimizer)
    for step in run.steps(make_data()):
        for inputs, targets in step:
            step.backward(summed(model, inputs, targets))
        optimizer.step()
        if step.ends_epoch:
            run.log(margin=0.25 + step.epoch, test={"accuracy": 0.5})
    result = run.finish(note="by hand")
    found = json.loads((out / "result.json").read_text())
    assert found["note"] == "by hand"
    assert found["test_accuracy"] == 0.5
    assert found["logged"] == {"margin": 1.25}
    events = records.read(out / "records.jsonl")
    assert [event["values"] for event in events if event["kind"] == "log"] == [{"margin": 0.25}, {"margin": 1.25}]
    assert result.folder == out


# -- what it refuses -------------------------------------------------------------------------------------------------


def test_a_folder_that_holds_a_run_is_not_overwritten(finished: tuple[squall.Result, Path]) -> None:
    before = (finished[1] / "result.json").read_bytes()
    with pytest.raises(InputError, match="holds a run that is finished"):
        trained(finished[1])
    assert (finished[1] / "result.json").read_bytes() == before


def test_a_busy_folder_is_refused(tmp_path: Path) -> None:
    first = Folder(tmp_path / "run")
    with pytest.raises(InputError, match="in use by another process") as error:
        trained(tmp_path / "run")
    assert "one run, one writer" in str(error.value)
    first.close()
    assert trained(tmp_path / "run").outcome == "finished"


def test_a_lock_file_that_a_killed_run_left_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("")
    assert trained(tmp_path).outcome == "finished"


def between_open_and_lock(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], Any]) -> None:
    """Lets something happen once, after the next writer has opened the lock's file and before it locks it."""
    flock = fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        happens()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)


@pytest.mark.parametrize("existed", [False, True])
def test_a_lock_on_a_file_that_its_owner_removed_keeps_the_next_writer_out(
    existed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if existed:
        (tmp_path / "run").mkdir()
    first = Folder(tmp_path / "run")
    between_open_and_lock(monkeypatch, first.close)
    second = Folder(tmp_path / "run")
    with pytest.raises(InputError, match="in use by another process"):
        Folder(tmp_path / "run")
    second.close()
    assert (tmp_path / "run").exists() == existed


def test_of_three_writers_one_that_closes_leaves_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Folder(tmp_path)
    others: list[Folder] = []

    def happens() -> None:
        first.close()
        others.append(Folder(tmp_path))

    between_open_and_lock(monkeypatch, happens)
    with pytest.raises(InputError, match="in use by another process"):
        Folder(tmp_path)
    others[0].close()
    Folder(tmp_path).close()


def test_a_run_that_ended_while_the_lock_was_taken_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Folder(tmp_path)

    def ends() -> None:
        (tmp_path / "records.jsonl").write_text("mine")
        first.close()

    between_open_and_lock(monkeypatch, ends)
    with pytest.raises(InputError, match="holds a run already"):
        Folder(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"records.jsonl"}


def test_fresh_makes_its_folder_and_gives_way_to_a_faster_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, runs = datetime(2026, 11, 20, 17, 44), tmp_path / "runs"

    def overtaken(path: Path) -> bool:
        monkeypatch.setattr(folders, "make", make)
        runs.mkdir()
        path.mkdir()
        return make(path)

    monkeypatch.setattr(folders, "make", overtaken)
    assert folders.fresh("digits", now, runs, create=True) == runs / "digits-1120-1744-2"
    assert folders.fresh("digits", now, runs) == runs / "digits-1120-1744-3"
    assert {path.name for path in runs.iterdir()} == {"digits-1120-1744", "digits-1120-1744-2"}


def test_a_fresh_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    for runs in ("runs", "dangling"):
        with pytest.raises(InputError, match="cannot be written"):
            folders.fresh("digits", runs=tmp_path / runs, create=True)


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(InputError, match="run is a file"):
        trained(tmp_path / "run")
    with pytest.raises(InputError, match=r"the run folder .* cannot be written"):
        trained(tmp_path / "run" / "below")
    assert (tmp_path / "run").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_named() -> None:
    with pytest.raises(InputError, match="the run folder /proc/self/run cannot be written"):
        trained(Path("/proc/self/run"))


@pytest.mark.parametrize("stage", ["loss", "order"])
def test_a_mistake_before_the_first_step_leaves_nothing_behind(stage: str, tmp_path: Path) -> None:
    loss = (lambda out, y: out.sum() / len(y) + out.norm()) if stage == "loss" else F.cross_entropy
    task = squall.Task(model=normalised, loss=loss, train=make_data(17))  # 17: a worker of one sample
    with pytest.raises(InputError, match="depends on the batch" if stage == "loss" else "worker of one sample"):
        squall.train(task, squall.Recipe(**FIELDS), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_everything_is_given_back_after_a_run_and_after_an_error(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    deterministic = torch.are_deterministic_algorithms_enabled()
    trained(tmp_path / "a")
    with pytest.raises(InputError, match="worker of one sample"):
        train(normalised(), data=make_data(17), out=tmp_path / "b")
    assert len(os.listdir("/proc/self/fd")) == before
    assert torch.are_deterministic_algorithms_enabled() == deterministic
    lock = os.open(tmp_path / "a" / ".lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(lock)


# -- how it ends -----------------------------------------------------------------------------------------------------


def test_a_diverged_run_says_step_rate_and_what_to_try(tmp_path: Path) -> None:
    def explodes(model: nn.Module, batch: Any) -> Any:
        loss = F.cross_entropy(model(batch[0]), batch[1], reduction="sum")
        return squall.Loss(loss * torch.where(model[0].weight.abs().max() > 1e3, torch.nan, 1.0), len(batch[1]))

    task = squall.Task(model=normalised, step=explodes, train=make_data(18))
    recipe = squall.Recipe(**{**FIELDS, "lr": 1e6})
    with pytest.raises(DivergedError, match=r"the run diverged: the loss is nan in step 1, epoch 1") as error:
        squall.train(task, recipe, out=tmp_path / "run")
    assert "1e+06" in str(error.value)
    assert "clip_grad_norm" in str(error.value)
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    assert found["outcome"] == "diverged"
    assert found["diverged_at_step"] == 1
    assert found["diverged_at_rate"] == 1e6
    ended = records.read(tmp_path / "run" / "records.jsonl")[-1]
    assert ended["kind"] == "ended"
    assert ended["outcome"] == "diverged"
    assert "lr.base" in ended["advice"]
    assert not (tmp_path / "run" / "weights.safetensors").exists()
