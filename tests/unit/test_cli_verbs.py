"""The verbs that need no training: quick, precise about mistakes, and complete."""

from __future__ import annotations

import ast
import inspect
import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from squall.cli import folders
from squall.cli.main import main
from squall.errors import UserCodeError
from tests.jobs import torchrun_job


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("SQUALL_DATA", raising=False)


def said(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    """Standard output of a command, or standard error where it must fail; the other one must be empty."""
    assert main(arguments) == status
    out, err = capsys.readouterr()
    assert (err if status == 0 else out) == ""
    return out if status == 0 else err


# -- speed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["recipes"],
        ["recipes", "imagenet", "--fields"],
        ["recipes", "cifar10", "--as-script"],
        ["data", "list"],
        ["train", "digits", "--dry-run"],
        ["train", "digits", "worker=32"],
        ["train", "fashion-mnist", "--data", "nowhere"],
        ["train", "digits", "--processes", "9"],
        ["train", "digits", "--out", "full"],
        ["eval", "nosuch"],
        ["export", "nosuch"],
    ],
)
def test_no_torch_is_loaded_for_help_lists_and_mistakes(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "records.jsonl").touch()
    code = (
        "import sys; from squall.cli.main import main\n"
        f"status = main({arguments!r})\n"
        "sys.exit(99 if 'torch' in sys.modules else status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode in (0, 2), done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["full"]


# -- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "digts"], ["no recipe called digts", "near      digits", "shipped"]),
        (["train", "digits", "worker=32", "optimizer.name=adamx"], ["2 mistakes in digits", "worker=32", "adamx"]),
        (["train", "digits", "workers=4"], ["virtual_workers", "data.num_workers", "--processes"]),
        (["train", "digits", "epochs", "3"], ["epochs", "is no key=value"]),
        (["train", "mine.toml"], ["cannot read mine.toml"]),
        (["train", "mine.py"], ["cannot read mine.py", "no such file"]),
        (
            ["train", "digits", "--processes", "9"],
            ["9 processes are more than the 8 passes", "--processes 8"],
        ),
        (["train", "digits", "fuse=4", "-P", "3"], ["more than the 2 passes", "4 workers a pass", "compute.fuse"]),
        (["train", "digits", "data.train_limit=20", "-P", "3"], ["more than the 2 passes"]),
        (["train", "cifar10", "--data", "nowhere"], ["nowhere/cifar10", "squall data fetch cifar10 --data nowhere"]),
        (["train", "digits", "model.weights=no.safetensors"], ["no.safetensors does not exist"]),
        (["train", "digits", "--nosuch"], ["no such option: --nosuch", "squall train --help"]),
        (["train", "digits", "--processes", "0"], ["--processes"]),
        (["train", "digits", "--device", "tpu"], ["tpu", "cpu"]),
        (["train"], ["missing argument"]),
        (["tarin"], ["no such command", "tarin"]),
        (["explain", "nosuch"], ["no recipe called nosuch"]),
        (["recipes", "nosuch"], ["no recipe called nosuch"]),
        (["recipes", "--copy", "x.toml"], ["which recipe?"]),
        (["recipes", "digits", "--fields", "--as-script"], ["one at a time"]),
        (["recipes", "digits", "--copy", "x.txt"], ["--copy x.toml"]),
        (["data", "fetch", "imagenett"], ["no public set named imagenett"]),
        (["data", "check", "cifar", "--data", "."], ["no data set named cifar"]),
        (["eval", "last"], ["no run in runs/ has a result yet", "squall train digits"]),
        (["export", "nosuch"], ["nosuch is no run folder"]),
    ],
)
def test_a_mistake_is_one_message_on_standard_error_with_status_2(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = said(capsys, *arguments, status=2)
    assert text.startswith("squall: ")
    assert text.splitlines()[0].endswith("(exit 2)")
    assert [word for word in words if word.lower() not in text.lower()] == []
    assert list(tmp_path.iterdir()) == []


def test_a_busy_folder_and_a_file_in_its_place_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "records.jsonl").touch()
    (tmp_path / "file").touch()
    assert "holds a run already" in said(capsys, "train", "digits", "--out", "old", status=2)
    assert "is a file" in said(capsys, "train", "digits", "--out", "file", status=2)


def test_half_an_environment_of_a_job_is_a_mistake(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    assert "WORLD_SIZE" in said(capsys, "train", "digits", status=2)


def test_a_job_that_is_there_is_not_launched_again(capsys: pytest.CaptureFixture[str]) -> None:
    with torchrun_job(2):
        assert "leave --processes away" in said(capsys, "train", "digits", "--processes", "4", status=2)
    with torchrun_job(9):
        assert "9 processes are more than the 8 passes" in said(capsys, "train", "digits", status=2)


# -- TARGET --------------------------------------------------------------------------------------------------------

TASK = """
import torch, squall
import torch.nn.functional as F
data = [(torch.zeros(2), 0)] * 40
task = squall.Task(model=lambda: torch.nn.Linear(2, 2), loss=F.cross_entropy, train=data)
"""
RECIPE = "recipe = squall.Recipe(epochs=2, global_batch_size=8, worker_batch_size=4, lr=0.1)\n"


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(said(capsys, "train", *arguments, "--dry-run", "--json"))
    return found


def test_a_python_file_gives_task_and_recipe_and_its_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "cats.py").write_text(TASK + RECIPE)
    found = dry_run(capsys, "cats.py", "lr=0.5", "-P", "2")
    assert (found["recipe"]["name"], found["recipe"]["lr"]["base"], found["processes"]) == ("cats", 0.5, 2)
    assert found["folder"].startswith("runs/cats-")


def test_a_python_file_without_a_recipe_takes_it_from_the_command_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "cats2.py").write_text(TASK)
    text = said(capsys, "train", "cats2.py", status=2)
    assert "mistakes in cats2.py" in text
    assert "epochs" in text
    assert "lr" in text
    found = dry_run(capsys, "cats2.py", "lr=0.5", "epochs=1", "global_batch_size=8", "virtual_workers=2", "-P", "1")
    assert found["recipe"]["worker_batch_size"] == 4


@pytest.mark.parametrize(
    ("source", "words", "status"),
    [
        ("x = 1\n", ["defines no task", "squall.Task("], 2),
        ("task = 3\n", ["task is a int"], 2),
        ("task = (\n", ["is no Python", ":1"], 2),
        (TASK + "recipe = {}\n", ["recipe in", "is a dict"], 2),
        ("def f():\n    return {}['gooseneck']\nf()\n", ["your code raised KeyError", "'gooseneck'", ":2 in f"], 1),
        ("import squall\ntask = squall.Task(model=int, train=[])\n", ["a task needs a loss or a step"], 2),
    ],
)
def test_mistakes_in_a_python_file_show_no_traceback(
    source: str, words: list[str], status: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "cats3.py"
    path.write_text(source)
    text = said(capsys, "train", "cats3.py", "--dry-run", status=status)
    assert "Traceback" not in text
    assert [word for word in words if word not in text] == []


def test_a_toml_file_is_named_after_itself_unless_it_has_a_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = said(capsys, "recipes", "digits").replace('name = "digits"\nseed', "seed")
    (tmp_path / "mine.toml").write_text(text)
    assert dry_run(capsys, "mine.toml")["recipe"]["name"] == "mine"
    said(capsys, "recipes", "digits", "--copy", "again.toml")
    assert dry_run(capsys, "again.toml")["recipe"]["name"] == "digits"


def test_a_dry_run_prints_a_recipe_that_loads_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = said(capsys, "train", "digits", "lr=0.2", "--dry-run", "-P", "1")
    (tmp_path / "back.toml").write_text(text)
    assert dry_run(capsys, "back.toml")["recipe"] == dry_run(capsys, "digits", "lr=0.2")["recipe"]
    assert not (tmp_path / "runs").exists()


def test_the_default_number_of_processes_never_exceeds_the_passes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("squall.engine.machine.default_processes", lambda: 64)
    assert dry_run(capsys, "digits")["processes"] == 8
    assert dry_run(capsys, "digits", "fuse=8")["processes"] == 1


# -- run folders ---------------------------------------------------------------------------------------------------


def test_folders_of_one_minute_get_numbers(tmp_path: Path) -> None:
    now = datetime(2026, 11, 20, 17, 44)
    names = []
    for _ in range(3):
        path = folders.fresh("digits", now, tmp_path)
        path.mkdir()
        names.append(path.name)
    assert names == ["digits-1120-1744", "digits-1120-1744-2", "digits-1120-1744-3"]


def test_a_pipe_and_a_link_are_written_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("real.csv")
    with folders.whole(tmp_path / "link.csv") as file:
        file.write("new")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with folders.whole(tmp_path / "pipe") as file:
        file.write("new")
    assert os.read(reader, 9) == b"new"
    os.close(reader)


def test_the_whole_traceback_goes_into_the_runs_folder_and_the_message_says_where(tmp_path: Path) -> None:
    error = UserCodeError("your code raised KeyError", [("KeyError", "'x'")])
    error.traceback = "Traceback ...\nKeyError: 'x'"
    logged = folders.log_traceback(error, tmp_path, 3)
    assert logged.hint == f"whole traceback: {tmp_path}/logs/rank-3.log"
    assert (tmp_path / "logs" / "rank-3.log").read_text() == error.traceback
    taken_away = folders.log_traceback(error, tmp_path / "run", 3)  # a run that never began leaves no folder
    assert taken_away.hint == f"whole traceback: {tmp_path}/run/logs/rank-3.log"
    assert folders.log_traceback(error, tmp_path / "logs" / "rank-3.log" / "none", 3) is error


# -- recipes -------------------------------------------------------------------------------------------------------


def test_the_list_names_every_shipped_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    known = json.loads(said(capsys, "recipes", "--json"))
    assert set(known) >= {"digits", "fashion-mnist", "cifar10", "imagenet", "photos"}
    assert all(f"{name} " in said(capsys, "recipes") for name in known)


def test_a_copy_is_the_shipped_text_and_never_replaces_a_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said(capsys, "recipes", "cifar10", "--copy", "mine.toml")
    assert (tmp_path / "mine.toml").read_text() == said(capsys, "recipes", "cifar10")
    assert "exists already" in said(capsys, "recipes", "digits", "--copy", "mine.toml", status=2)
    assert "cannot be written" in said(capsys, "recipes", "digits", "--copy", "no/mine.toml", status=2)


def test_every_field_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "recipes", "imagenet", "--fields")
    rows = json.loads(said(capsys, "recipes", "imagenet", "--fields", "--json"))
    assert all(row["meaning"] for row in rows)
    assert [row["name"] for row in rows if f"{row['name']} " not in text] == []
    assert max(map(len, text.splitlines())) <= 160


def test_overrides_show_in_the_printed_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert "base = 0.7" in said(capsys, "recipes", "digits", "lr=0.7")


def test_the_script_holds_squalls_own_loop_verbatim(capsys: pytest.CaptureFixture[str]) -> None:
    from squall.loop import Job, minibatch

    text = said(capsys, "recipes", "imagenet", "--as-script")
    ast.parse(text)
    assert inspect.getsource(minibatch) in text
    assert inspect.getsource(Job).strip() in text
    assert "global_batch_size=8192" in text


def test_a_recipe_with_its_own_loss_cannot_be_a_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert "its step takes your loss" in said(capsys, "recipes", "digits", "loss=my:loss", "--as-script", status=2)


# -- explain, data -------------------------------------------------------------------------------------------------


def test_explain_needs_no_data_for_sets_of_known_size(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "explain", "imagenet", "global_batch_size=8192")
    assert "25,557,032 parameters" in text
    assert "1,281,167 images = 156 steps of 8,192 + one of 3,215" in text
    assert json.loads(said(capsys, "explain", "digits", "--json"))["num_samples"] == 1437


def test_explain_asks_for_the_size_of_an_unknown_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--samples N" in said(capsys, "explain", "photos", status=2)
    assert "1,000 images" in said(capsys, "explain", "photos", "--samples", "1000")


def test_explain_counts_what_is_held_out(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = json.loads(said(capsys, "explain", "digits", "data.val_samples=137", "--json"))
    assert numbers["num_samples"] == 1300


def test_data_list_says_what_is_here(capsys: pytest.CaptureFixture[str], real_data: Path) -> None:
    rows = {row["name"]: row for row in json.loads(said(capsys, "data", "list", "--data", str(real_data), "--json"))}
    assert rows["fashion-mnist"]["where"] == str(real_data / "fashion-mnist")
    assert rows["mnist"]["where"] == "not here"
    assert rows["digits"]["where"] == "inside the package"


def test_data_check_counts_every_image(capsys: pytest.CaptureFixture[str], real_data: Path) -> None:
    assert said(capsys, "data", "check", "digits").startswith("digits: 1,437 train + 360 test images, 10 classes")
    photos = said(capsys, "data", "check", "caltech101-subset", "--data", str(real_data))
    assert photos.splitlines()[-1] == "ok"


def test_data_check_fails_on_a_fault(capsys: pytest.CaptureFixture[str], tmp_path: Path, real_data: Path) -> None:
    picture = next((real_data / "caltech101-subset" / "train").glob("*/*.jpg"))
    for split in ("train", "val"):
        (tmp_path / "mine" / split / "cat").mkdir(parents=True)
        (tmp_path / "mine" / split / "cat" / "a.jpg").write_bytes(picture.read_bytes())
    assert main(["data", "check", "mine", "--data", "."]) == 0
    (tmp_path / "mine" / "train" / "cat" / "b.jpg").write_bytes(b"no picture")
    assert main(["data", "check", "mine", "--data", "."]) == 1
    assert "b.jpg" in capsys.readouterr().out


def test_help_lists_the_verbs_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "--help")
    assert all(f" {verb} " in text for verb in ("train", "explain", "recipes", "data", "eval", "export", "doctor"))
    assert said(capsys) == text
    assert said(capsys, "--version").startswith("squall 0.")
