"""`squall` where something else starts the ranks: one message for one mistake, the same status everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from squall import records
from squall.cluster.world import listener

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

ONE_RANK_FAILS = """
import os
import torch, squall
import torch.nn.functional as F

class Photos:
    def __len__(self):
        return 64
    def __getitem__(self, index):
        if index in (40, 41, 43, 44) and os.environ["RANK"] == "1":
            return {}["gooseneck"]
        return torch.randn(2), index % 2

task = squall.Task(model=lambda: torch.nn.Linear(2, 2), loss=F.cross_entropy, train=Photos())
recipe = squall.Recipe(epochs=9, global_batch_size=16, worker_batch_size=4, lr=0.1)
"""


def by_hand(folder: Path, *arguments: str, size: int = 2) -> tuple[list[int], list[str]]:
    """Statuses and standard errors of ranks that a script starts, as srun does; rank 0 holds the store."""
    with listener() as free:
        port = free.getsockname()[1]
    known = {key: value for key, value in os.environ.items() if not key.startswith("TORCHELASTIC")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "squall", *arguments],
            cwd=folder,
            env={
                **known,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_WORLD_SIZE": str(size),
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": str(port),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        said = [process.communicate(timeout=100)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [process.returncode for process in processes], said


def own_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("squall: ")]


@pytest.mark.parametrize(
    ("arguments", "message", "status"),
    [
        (["train", "digits", "worker_batch_size=128"], "squall: 2 processes are more than the 1 pass of a step", 2),
        (["train", "digits", "precision=fp16"], "squall: precision=fp16 needs a CUDA device", 2),  # after joining
        (["train", "digits", "lr=1000000"], "squall: the run diverged: the loss is nan in step", 1),
    ],
)
def test_a_mistake_of_all_ranks_is_said_by_rank_0_and_all_leave_with_its_status(
    arguments: list[str], message: str, status: int, tmp_path: Path
) -> None:
    statuses, (first, second) = by_hand(tmp_path, *arguments)
    assert statuses == [status, status]
    assert [line.startswith(message) for line in own_lines(first)] == [True]
    assert second == ""


def test_an_error_of_one_rank_is_said_by_it_and_explains_the_others(tmp_path: Path) -> None:
    (tmp_path / "geese.py").write_text(ONE_RANK_FAILS)
    statuses, (first, second) = by_hand(tmp_path, "train", "geese.py", "--out", "run")
    assert statuses == [1, 1]
    assert own_lines(first) == []
    (line,) = own_lines(second)
    assert "your code raised KeyError at train[4" in line
    assert "rank 1 of 2" in line
    assert (tmp_path / "run" / "logs" / "rank-1.log").is_file()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["outcome"] == "failed"
    assert "rank 1 was lost" in result["error"]
    assert records.read(tmp_path / "run" / "records.jsonl")[-1]["outcome"] == "failed"


def test_torchrun_shows_one_message_for_all_ranks(tmp_path: Path) -> None:
    done = subprocess.run(
        [*TORCHRUN, "-m", "squall", "train", "digits", "precision=fp16"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1  # torchrun's own
    assert len(own_lines(done.stderr)) == 1
    assert list(tmp_path.iterdir()) == []


def test_torchrun_shows_the_error_of_one_rank(tmp_path: Path) -> None:
    (tmp_path / "geese.py").write_text(ONE_RANK_FAILS)
    done = subprocess.run(
        [*TORCHRUN, "-m", "squall", "train", "geese.py"], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    (line,) = own_lines(done.stderr)
    assert "your code raised KeyError at train[4" in line
    assert "rank 1 of 2" in line
