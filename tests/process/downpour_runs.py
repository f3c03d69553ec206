"""Trainings of replicas and shards on real Ray, started as a person starts them, and what is seen from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from squall import records
from squall.run.folder import LOGS, RECORDS, RESULT, SESSIONS
from tests.process.ray_drivers import until

GONE_S = 10.0
STARTS_S = 90.0

TASK = """
import os, time
import torch
import torch.nn.functional as F
from torch import nn
import squall

generator = torch.Generator().manual_seed(1)
inputs = torch.randn({samples}, 6, generator=generator)
labels = (inputs[:, 0] + inputs[:, 1] > 0).long()
pause = {pause}

def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 2))

def loss(outputs, targets):
    time.sleep(pause if torch.is_grad_enabled() else 0)  # a gradient that takes a while: roles can die before the end
{loss}
    return F.cross_entropy(outputs, targets, reduction="sum")

class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return len(inputs)
    def __getitem__(self, index):
{item}
        return inputs[index], int(labels[index])

task = squall.Task(model=network, loss=loss, train=Pairs(){more})
recipe = squall.Recipe(epochs={epochs}, worker_batch_size=4, lr={{"base": 0.05, "schedule": "constant"}},
                       optimizer={{"name": "adagrad"}}, strategy="downpour",
                       downpour={{"replicas": {replicas}, "shards": 2, "lease_timeout": "{lease}"}},
                       checkpoint={{"every": "{every}"}})
"""


def write_task(path: Path, **values: Any) -> Path:
    """A task's file; values: samples, pause, epochs, replicas, lease, every, loss and item (lines of code), more."""
    defaults: dict[str, Any] = {"samples": 400, "pause": 0.01, "epochs": 2, "replicas": 2, "lease": "60s"}
    defaults |= {"every": "1s", "loss": "", "item": "", "more": ""}
    path.write_text(TASK.format(**{**defaults, **values}))
    return path


class Training:
    """A command that trains, in a session and process group of its own, as a terminal starts it.

    Attributes:
        process: the driver's.
        folder: of the run.
    """

    def __init__(self, folder: Path, *command: str, cwd: Path) -> None:
        self.folder, self._cwd = folder, cwd
        self._said = cwd / f"said-{len(list(cwd.glob('said-*')))}"
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                start_new_session=True,
            )

    def said(self) -> str:
        """What it has written on the terminal."""
        return self._said.read_text()

    def records(self, kind: str, file: str = RECORDS) -> list[dict[str, Any]]:
        """Its records of a kind."""
        path = self.folder / file
        return [record for record in records.read(path) if record["kind"] == kind] if path.exists() else []

    def changes(self, change: str) -> list[dict[str, Any]]:
        """What became of its roles."""
        return [record for record in self.records("role") if record["change"] == change]

    def settled(self) -> int:
        """Minibatches that all shards have answered for."""
        return max((push["settled"] for push in self.records("push")), default=0)

    def reaches(self, minibatch: int, timeout_s: float = STARTS_S) -> None:
        """Waits until so many are settled."""
        self.comes(lambda: self.settled() >= minibatch, timeout_s)

    def comes(self, true: Callable[[], object], timeout_s: float = STARTS_S) -> None:
        """Waits until something is true, while it runs."""
        until(lambda: self.process.poll() is not None or true(), timeout_s)
        assert true(), self.said()

    def ended(self, timeout_s: float = 90.0) -> int:
        """Its exit status."""
        return self.process.wait(timeout_s)

    def result(self) -> dict[str, Any]:
        """What it came to."""
        found: dict[str, Any] = json.loads((self.folder / RESULT).read_text())
        return found

    def pids(self, marked: list[int]) -> dict[str, int]:
        """The processes of its roles, told by where they write."""
        found = {}
        for pid in marked:
            with suppress(OSError):
                target = Path(os.readlink(f"/proc/{pid}/fd/1"))
                if target.parent == (self.folder / LOGS).resolve():
                    found[target.stem] = pid
        return found

    def sessions(self, kind: str) -> list[dict[str, Any]]:
        """What its sessions say."""
        return self.records(kind, SESSIONS)


def check_ledger(run: Training, minibatches: int) -> dict[str, Any]:
    """Everything that was to be trained was, on each shard once, and the counts add up; the result."""
    result = run.result()
    assert result["outcome"] == "finished"
    counts = result["minibatches"]
    assert counts["settled"] == counts["of"] == minibatches
    for shard in counts["shards"]:
        assert shard["applied"] + shard["dropped"] + shard["lost"] == minibatches
        assert shard["restarts"] or not shard["lost"]
    found = Counter(m for p in run.records("push") for m in range(p["minibatch"], p["minibatch"] + p["minibatches"]))
    assert set(found) <= set(range(minibatches))
    assert max(found.values()) == 1
    return result


def squall(*arguments: str) -> list[str]:
    """A command line of Squall's."""
    return [sys.executable, "-m", "squall", *arguments]


@contextmanager
def running(folder: Path, *command: str, cwd: Path) -> Iterator[Training]:
    """A training, which is killed at the end if it has not ended."""
    run = Training(folder, *command, cwd=cwd)
    try:
        yield run
    finally:
        run.process.kill()
        run.process.wait()
