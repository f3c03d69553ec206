"""`squall train` from end to end with real processes: same weights whoever starts it; what is left when it fails."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from squall import records
from squall.cli.main import main


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/one: digits for two epochs on one process, with an average of weights."""
    folder = tmp_path_factory.mktemp("trained")
    done = squall(folder, "train", "digits", "epochs=2", "ema=0.9", "--processes", "1", "--out", "runs/one")
    assert done.returncode == 0, done.stderr
    (folder / "printed.txt").write_text(done.stdout)
    return folder


def squall(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "squall", *arguments], cwd=folder, capture_output=True, text=True, timeout=100
    )


def result(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return values


def test_two_launched_processes_give_the_weights_of_one_and_print_once(trained: Path) -> None:
    done = squall(trained, "train", "digits", "epochs=2", "ema=0.9", "--processes", "2", "--out", "runs/two")
    assert (done.returncode, done.stderr) == (0, "")
    assert result(trained / "runs" / "two")["weights_sha256"] == result(trained / "runs" / "one")["weights_sha256"]
    assert done.stdout.count("test accuracy ") == 2  # the table's head and the last block
    assert "2 processes x 1 thread, float32, exact reduction" in done.stdout.splitlines()[0]


def test_what_is_printed_is_the_golden_text_but_for_measured_numbers(trained: Path) -> None:
    golden = (Path(__file__).parents[1] / "golden" / "train-digits-ema.txt").read_text()
    assert _shape((trained / "printed.txt").read_text()) == _shape(golden)


def _shape(text: str) -> list[str]:
    """The text with measured numbers, and names of this machine, taken out."""
    text = re.sub(r"torch \S+, cpu \(\w+\)", "torch T, cpu (I)", text)
    text = re.sub(r"sha256 \w+", "sha256 S", text)
    rows = []
    for line in text.splitlines():
        measured = line.startswith("test accuracy") or re.match(r" +\d+ ", line)
        rows.append(re.sub(r"\d[\d,.]*", "0", re.sub(r" +", " ", line)) if measured else line)
    return rows


def test_a_run_leaves_its_recipe_records_weights_and_result(trained: Path) -> None:
    run = trained / "runs" / "one"
    names = {entry.name for entry in run.iterdir()}
    assert {"recipe.toml", "records.jsonl", "weights.safetensors", "ema.safetensors", "result.json"} <= names
    assert ".lock" not in names
    kinds = [record["kind"] for record in records.read(run / "records.jsonl")]
    assert kinds == ["started", *["step"] * 12, "epoch", *["step"] * 12, "epoch", "ended"]


def test_eval_prints_the_numbers_of_the_result(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(trained)
    assert main(["eval", "one", "--json", "--save", "rows.csv"]) == 0
    found, kept = json.loads(capsys.readouterr().out), result(trained / "runs" / "one")
    assert found["test"] == {"accuracy": kept["test_accuracy"], "loss": kept["test_loss"]}
    with (trained / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(360))
    assert sum(row["target"] == row["prediction"] for row in rows) == round(360 * kept["test_accuracy"])
    assert main(["eval", "one"]) == 0
    assert capsys.readouterr().out.count("as in result.json") == 2


def test_eval_on_two_processes_prints_the_same(trained: Path) -> None:
    done = squall(trained, "eval", "runs/one", "--processes", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["test"]["loss"] == result(trained / "runs" / "one")["test_loss"]


def test_export_writes_the_modules_own_names_the_average_unless_raw(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(trained)
    assert main(["export", "one", "--to", "average.safetensors", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["averaged"] is True
    assert main(["export", "one", "--to", "last.safetensors", "--raw"]) == 0
    for exported, kept in (("average", "ema"), ("last", "weights")):
        mine, theirs = load_file(f"{exported}.safetensors"), load_file(trained / "runs" / "one" / f"{kept}.safetensors")
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert main(["export", "one", "--to", "last.safetensors"]) == 2
    assert main(["export", "one", "--to", "last.pt"]) == 2


def test_the_resolved_recipe_run_again_gives_the_same_weights(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(trained)
    assert main(["train", "runs/one/recipe.toml", "-P", "1", "--out", "runs/again", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1]["result"]["weights_sha256"] == result(trained / "runs" / "one")["weights_sha256"]


def test_the_printed_script_ends_with_the_weights_of_train(trained: Path) -> None:
    text = squall(trained, "recipes", "digits", "epochs=2", "ema=0.9", "--as-script").stdout
    (trained / "own.py").write_text(text)
    done = subprocess.run([sys.executable, "own.py"], cwd=trained, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert result(trained / "runs" / "one")["weights_sha256"] in done.stdout


def test_the_printed_script_weighs_a_loss_over_workers_as_train_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    changes = ["epochs=1", "loss_over=worker", "global_batch_size=100"]  # 1,437: a last minibatch of unequal workers
    assert main(["recipes", "digits", *changes, "--as-script"]) == 0
    (tmp_path / "own.py").write_text(capsys.readouterr().out)
    done = subprocess.run(
        [sys.executable, "own.py", "--out", "own"], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert main(["train", "digits", *changes, "-P", "1", "--out", "theirs"]) == 0
    own, theirs = result(tmp_path / "own"), result(tmp_path / "theirs")
    assert own["train_loss"] < 2.4  # a mean over samples, of ten classes
    for key in ("weights_sha256", "test_loss", "train_loss", "test_accuracy"):
        assert own[key] == theirs[key]


def test_predictions_take_the_place_of_older_ones_when_they_are_whole(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(trained)
    (trained / "old.csv").write_text("mine")
    monkeypatch.setattr("csv.writer", lambda file: Breaks(file))
    assert main(["eval", "one", "--save", "old.csv"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert (trained / "old.csv").read_text() == "mine"
    assert [path.name for path in trained.glob("*.partial")] == []
    monkeypatch.undo()
    monkeypatch.chdir(trained)
    assert main(["eval", "one", "--save", "old.csv"]) == 0
    assert len((trained / "old.csv").read_text().splitlines()) == 361
    assert main(["eval", "one", "--save", "no/rows.csv"]) == 2
    assert "no such folder" in capsys.readouterr().err


class Breaks:
    """Writes a row, and then the disk is full."""

    def __init__(self, file: Any) -> None:
        self.file, self.rows = file, 0

    def writerow(self, row: list[Any]) -> None:
        self.file.write(f"{row}\n")
        self.rows += 1
        if self.rows == 3:
            raise OSError(28, "No space left on device")


TASK = """
import torch, squall
import torch.nn.functional as F

class Photos:
    def __len__(self):
        return 64
    def __getitem__(self, index):
        if index == 40:
            return {}["gooseneck"]
        return torch.zeros(2), 0

task = squall.Task(model=lambda: torch.nn.Linear(2, 2), loss=F.cross_entropy, train=Photos())
recipe = squall.Recipe(epochs=2, global_batch_size=16, worker_batch_size=4, lr=0.1)
"""


def test_an_error_in_the_users_code_is_shown_once_with_its_place_and_kept_whole(tmp_path: Path) -> None:
    (tmp_path / "geese.py").write_text(TASK)
    done = squall(tmp_path, "train", "geese.py", "--processes", "2", "--out", "run")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert re.match(
        r"squall: your code raised KeyError at train\[40\], rank [01] of 2, epoch 1, step \d +\(exit 1\)", lines[0]
    )
    assert lines[1].startswith("  geese.py:10 in __getitem__")
    assert 'python -c "import geese; geese.task.train[40]"' in lines[3]
    assert re.match(r"  1 other rank stopped in [\d.]+ s", lines[4])
    rank = re.search(r"rank (\d)", lines[0])
    assert rank is not None
    assert lines[5] == f"whole traceback: run/logs/rank-{rank[1]}.log"
    assert "Traceback (most recent call last)" in (tmp_path / "run" / "logs" / f"rank-{rank[1]}.log").read_text()
    found = result(tmp_path / "run")
    assert found["outcome"] == "failed"
    assert lines[0].startswith(f"squall: {found['error']} ")  # that of the rank that failed, whoever wrote it
    assert records.read(tmp_path / "run" / "records.jsonl")[-1]["kind"] == "ended"


KILLED = """
import os, signal, squall, torch
import torch.nn.functional as F

class Photos:
    def __len__(self):
        return 64
    def __getitem__(self, index):
        if {} and os.environ["RANK"] == "{}":
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(2), 0

task = squall.Task(model=lambda: torch.nn.Linear(2, 2), loss=F.cross_entropy, train=Photos())
recipe = squall.Recipe(epochs=2, global_batch_size=16, worker_batch_size=4, lr=0.1)
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_leaves_a_run_that_failed(rank: int, tmp_path: Path) -> None:
    (tmp_path / "geese.py").write_text(KILLED.format("index in (40, 41, 43, 44, 45)", rank))
    done = squall(tmp_path, "train", "geese.py", "--processes", "2", "--out", "run", "--restarts", "0")
    assert done.returncode == 1
    assert f"rank {rank} of 2 was killed by SIGKILL" in done.stderr
    found = result(tmp_path / "run")
    assert (found["outcome"], found["error"]) == ("failed", f"rank {rank} of 2 was killed by SIGKILL")
    assert records.read(tmp_path / "run" / "records.jsonl")[-1]["outcome"] == "failed"
    left = {path.name for path in (tmp_path / "run").iterdir()}
    files = {"recipe.toml", "run.json", "records.jsonl", "sessions.jsonl", "result.json"}
    assert left - {"tb", "checkpoints", "logs"} == files


def test_a_rank_that_is_killed_before_the_first_step_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "geese.py").write_text(KILLED.format("True", 0))
    once = ["train", "geese.py", "--processes", "2", "--restarts", "0"]
    assert squall(tmp_path, *once, "--out", "run").returncode == 1
    assert squall(tmp_path, *once).returncode == 1
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"geese.py"}


def test_a_diverged_run_says_what_to_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "digits", "lr=100000", "-P", "1", "--out", "run"]) == 1
    out, err = capsys.readouterr()
    assert "test accuracy 9" not in out
    assert "diverged" in err
    assert "clip_grad_norm" in err
    assert result(tmp_path / "run")["outcome"] == "diverged"


def test_a_mistake_found_late_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "digits", "precision=fp16", "-P", "1"]) == 2
    assert main(["train", "digits", "optimizer=my_rules:Sgd", "-P", "1"]) == 2
    assert main(["train", "digits", "global_batch_size=8", "worker_batch_size=1", "-P", "1", "--out", "run"]) == 2
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_ends_in_one_line_and_status_130(processes: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "squall", "train", "digits", "epochs=500", "--json", "--processes", str(processes)]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert '"kind": "started"' in process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == ""
    ended = next(record for record in map(json.loads, out.splitlines()) if record["kind"] == "ended")
    assert ended["result"]["error"].startswith("stopped by Ctrl-C after step ")
    assert ended["advice"].startswith("squall resume runs/digits-")
    (folder,) = (tmp_path / "runs").iterdir()
    assert result(folder)["outcome"] == "stopped"
    assert records.read(folder / "records.jsonl")[-1]["outcome"] == "stopped"
