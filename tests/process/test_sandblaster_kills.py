"""Sandblaster on real Ray: replicas, shards and the driver are killed with SIGKILL, and nothing of the course changes.

Each run's weights are those of a run in simulated time, with one replica and without faults: to the last bit.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.process.downpour_runs import GONE_S, Training, running, squall
from tests.process.ray_drivers import until

TASK = """
import time
import torch
import torch.nn.functional as F
from torch import nn
import squall

generator = torch.Generator().manual_seed(1)
inputs = torch.randn(240, 6, generator=generator)
labels = (inputs[:, 0] + inputs[:, 1] * inputs[:, 2] > 0).long()

def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 40), nn.BatchNorm1d(40), nn.Tanh(), nn.Linear(40, 2))

def loss(outputs, targets):
    time.sleep({pause} if torch.is_grad_enabled() else 0)  # a gradient that takes a while: roles can die before the end
    return F.cross_entropy(outputs, targets, reduction="sum")

pairs = torch.utils.data.TensorDataset(inputs, labels)
task = squall.Task(model=network, loss=loss, train=pairs, test=pairs)
recipe = squall.Recipe(epochs=16, worker_batch_size=10, strategy="sandblaster", optimizer={{"weight_decay": 1e-3}},
                       sandblaster={{"replicas": {replicas}, "shards": 2, "unit": 2, "tolerance_gradient": 0}})
"""


def write_task(path: Path, *, replicas: int = 2, pause: float = 0.02) -> Path:
    path.write_text(TASK.format(replicas=replicas, pause=pause))
    return path


@pytest.fixture
def expected(tmp_path: Path) -> dict[str, Any]:
    """What one replica comes to in simulated time."""
    task = write_task(tmp_path / "alone.py", replicas=1, pause=0.0)
    command = squall("train", str(task), "--engine", "simulated", "--out", str(tmp_path / "alone"), "--quiet")
    with running(tmp_path / "alone", *command, cwd=tmp_path) as run:
        assert run.ended() == 0, run.said()
        return run.result()


def is_the_same(run: Training, expected: dict[str, Any]) -> dict[str, Any]:
    """Every evaluation counted each sample once, and weights and numbers are what they were to be."""
    assert run.ended() == 0, run.said()
    result = run.result()
    assert result["outcome"] == "finished"
    assert result["weights_sha256"] == expected["weights_sha256"]
    for name in ("loss", "gradient_norm", "iterations", "pairs", "test_accuracy"):
        assert result[name] == expected[name]
    assert result["inexact"] == 0
    assert result["samples"] == 240 * result["evaluations"]
    told = [record["epoch"] for record in run.records("epoch")]
    assert told == list(range(expected["iterations"]))
    return result


def test_a_replica_and_a_shard_are_killed(
    tmp_path: Path, mark: Callable[[], list[int]], expected: dict[str, Any]
) -> None:
    task = write_task(tmp_path / "kills.py")
    command = squall("train", str(task), "--out", str(tmp_path / "run"), "--quiet")
    with running(tmp_path / "run", *command, cwd=tmp_path) as run:
        run.comes(lambda: len(run.records("epoch")) >= 2)
        pids = run.pids(mark())
        os.kill(pids["replica-0"], signal.SIGKILL)
        run.comes(lambda: run.changes("restarted"))
        os.kill(pids["shard-1"], signal.SIGKILL)
        result = is_the_same(run, expected)
    assert [change["role"] for change in run.changes("restarted")] == ["replica-0", "shard-1"]
    assert result["set_backs"]["times"] == 1
    assert result["set_backs"]["iterations"] <= 1
    assert result["replicas"]["replica-0"]["portions"] > 0
    assert mark() == []


def test_the_driver_is_killed_and_the_run_goes_on_with_its_history(
    tmp_path: Path, mark: Callable[[], list[int]], expected: dict[str, Any]
) -> None:
    task = write_task(tmp_path / "driver.py")
    command = squall("train", str(task), "--out", str(tmp_path / "run"), "--quiet")
    with running(tmp_path / "run", *command, cwd=tmp_path) as run:
        run.comes(lambda: len(run.sessions("saved")) >= 4)
        run.process.kill()
        run.process.wait()
        until(lambda: not mark(), GONE_S)
        done = len(run.records("epoch"))
        assert done < expected["iterations"]
    with running(tmp_path / "run", *squall("resume", str(tmp_path / "run"), "--quiet"), cwd=tmp_path) as again:
        is_the_same(again, expected)
    first, second = again.sessions("session")
    assert second["start_step"] >= 3
    assert first["pid"] != second["pid"]
    assert mark() == []
