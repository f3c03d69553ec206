"""What goes wrong in a run of replicas and shards on real Ray, and what a person reads of it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.process.downpour_runs import GONE_S, Training, check_ledger, running, squall, write_task
from tests.process.ray_drivers import until


@pytest.fixture(autouse=True)
def nothing_is_left(mark: Callable[[], list[int]]) -> Callable[[], list[int]]:
    return mark


def trained(tmp_path: Path, *overrides: str, **values: object) -> Training:
    """A run of a task that has ended."""
    task = write_task(tmp_path / "wrong.py", **{"samples": 200, "epochs": 1, **values})
    command = squall("train", str(task), "--out", str(tmp_path / "run"), "--quiet", *overrides)
    with running(tmp_path / "run", *command, cwd=tmp_path) as run:
        run.ended()
    return run


@pytest.mark.parametrize(
    ("values", "frame", "error"),
    [
        ({"loss": "    if torch.is_grad_enabled() and pause: raise KeyError('of mine')"}, "in loss", "KeyError"),
        ({"item": "        if index == 77: raise ValueError('a bad sample')"}, "in __getitem__", "ValueError"),
    ],
    ids=["loss", "data"],
)
def test_an_exception_in_users_code_shows_their_frames_once(
    tmp_path: Path, values: dict[str, str], frame: str, error: str
) -> None:
    run = trained(tmp_path, **values)
    said = run.said()
    assert run.process.returncode == 1, said
    assert said.count("your code raised") == 1
    assert frame in said
    assert error in said
    assert "Traceback" not in said
    assert "site-packages/ray" not in said
    logs = (tmp_path / "run" / "logs").glob("*.log")
    assert any(error in log.read_text() and "Traceback" in log.read_text() for log in logs)
    assert run.result()["outcome"] == "failed"


def test_a_loss_that_is_no_number_is_a_diverged_run(tmp_path: Path) -> None:
    lines = "    if torch.is_grad_enabled() and pause and os.getpid() % 1 == 0: outputs = outputs * float('nan')"
    run = trained(tmp_path, loss=lines)
    assert run.process.returncode == 1
    assert "the loss is nan at minibatch" in run.said()
    assert "lr.base" in run.said()
    assert run.result()["outcome"] == "diverged"


def test_a_replica_that_dies_again_and_again(tmp_path: Path) -> None:
    lines = ["import threading", "if threading.current_thread().name.startswith('compute'):"]
    lines += ["    print('this is my end', flush=True)", "    os._exit(3)"]
    run = trained(tmp_path, item="\n".join(f"        {line}" for line in lines))
    said = run.said()
    assert run.process.returncode == 1
    assert "dies again and again" in said
    assert "this is my end" in said
    assert "Traceback" not in said
    assert run.result()["outcome"] == "failed"


SCRIPT = """
import sys
import torch
import torch.nn.functional as F
import squall
from beside import width

data = [(torch.randn(width), index % 2) for index in range(100)]

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(width, 2)
    def forward(self, inputs):
        return self.layer(inputs)

task = squall.Task(model=lambda: Net(), loss=lambda out, y: F.cross_entropy(out, y), train={train})
recipe = squall.Recipe(epochs=2, worker_batch_size=5, lr={{"base": 0.01}}, optimizer={{"name": "adagrad"}},
                       strategy="downpour", downpour={{"replicas": 2}})
if __name__ == "__main__":
    print(squall.train(task, recipe).values["minibatches"]["settled"])
"""


def script(tmp_path: Path, train: str) -> subprocess.CompletedProcess[str]:
    """A script of the user's that trains by itself, with a module beside it, run from another folder."""
    there, elsewhere = tmp_path / "there", tmp_path / "elsewhere"
    there.mkdir()
    elsewhere.mkdir()
    (there / "beside.py").write_text("width = 4\n")
    (there / "script.py").write_text(SCRIPT.format(train=train))
    command = [squall()[0], str(there / "script.py")]
    return subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, timeout=100, check=False)


def test_a_script_with_lambdas_trains_from_any_folder(tmp_path: Path) -> None:
    done = script(tmp_path, "data")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "40"


def test_what_cannot_be_sent_is_a_clear_error(tmp_path: Path) -> None:
    done = script(tmp_path, "type('Data', (list,), {'lock': __import__('threading').Lock()})(data)")
    assert done.returncode == 1
    assert "InputError: the task cannot be sent to the processes of replicas" in done.stderr
    assert "cannot pickle '_thread.lock' object" in done.stderr


def test_a_tasks_file_trains_from_any_folder(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    task = write_task(home / "my task-1.py", samples=100, epochs=1, strategy="")
    (home / "beside.py").write_text("")
    task.write_text("import beside\n" + task.read_text())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = squall(
        "train", f"../home/{task.name}", "strategy=downpour", "downpour.replicas=2", "--quiet", "--out", "o"
    )
    with running(elsewhere / "o", *command, cwd=elsewhere) as run:
        assert run.ended() == 0, run.said()
        check_ledger(run, 25)


def temporary(server: Path, shard: int, number: int) -> Path:
    """What a shard writes before it is a snapshot."""
    return server / f".shard-{shard}-{number:06}.safetensors.{(server / '.session').read_text()}.tmp"


def test_a_full_disk_while_shards_save_is_a_note_and_not_the_end(tmp_path: Path) -> None:
    task = write_task(tmp_path / "full.py", samples=1600, epochs=1, every="50step")
    command = squall("train", str(task), "--out", str(tmp_path / "run"))
    server = tmp_path / "run" / "server"
    with running(tmp_path / "run", *command, cwd=tmp_path) as run:
        run.comes(lambda: run.sessions("saved"))
        blocked = temporary(server, 1, run.sessions("saved")[-1]["number"] + 2)
        blocked.mkdir()  # what a shard writes next but one it cannot write
        run.comes(lambda: run.sessions("save_failed"))
        assert run.ended() == 0, run.said()
        check_ledger(run, 400)
    assert "shard 1 cannot save its snapshot" in run.said()
    failed = run.sessions("save_failed")
    assert len(failed) == 1
    assert run.sessions("saved")[-1]["step"] == 400 > failed[0]["step"] > 0
    assert failed[0]["kept"]


def test_the_last_state_cannot_be_saved(tmp_path: Path, mark: Callable[[], list[int]]) -> None:
    task = write_task(tmp_path / "full.py", samples=400, epochs=1, every="1000step")
    with running(tmp_path / "run", *squall("train", str(task), "--out", str(tmp_path / "run")), cwd=tmp_path) as run:
        run.reaches(10)
        blocked = temporary(tmp_path / "run" / "server", 0, 1)
        blocked.mkdir()
        assert run.ended() == 1
        assert "shard 0 cannot save its snapshot" in run.said()
    until(lambda: not mark(), GONE_S)
    blocked.rmdir()
