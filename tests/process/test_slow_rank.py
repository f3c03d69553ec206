"""Where the time goes on real ranks: a slow one is named, and the others' time is waiting, not communication."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import squall
from squall.cluster.world import World
from squall.records import EpochEnded, Record, Slow
from tests.jobs import run_job

_NAP_S = 0.01


class Photos:
    """Reading a sample takes its time on one rank."""

    def __init__(self, slow: bool) -> None:
        self.slow = slow

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> Any:
        if self.slow:
            time.sleep(_NAP_S)
        return torch.full((4,), index / 48), index % 2


def train(out: Path, slow: int | None, world: World) -> list[Record]:
    records: list[Record] = []
    data = Photos(world.rank == slow)
    task = squall.Task(model=lambda: torch.nn.Linear(4, 2), loss=F.cross_entropy, train=data)
    recipe = squall.Recipe(epochs=3, global_batch_size=24, worker_batch_size=4, lr=0.1)
    squall.train(task, recipe, out=out, world=world, sinks=(records.append,))
    return [record for record in records if isinstance(record, Slow | EpochEnded)]


def test_a_slow_rank_is_named_and_waited_for(tmp_path: Path) -> None:
    found = run_job(train, 3, tmp_path / "run", 2)[0]
    named = [record for record in found if isinstance(record, Slow)]
    assert {record.rank for record in named} == {2}
    assert len(named) == 3
    assert min(record.ratio for record in named) > 1.5
    epochs = [record for record in found if isinstance(record, EpochEnded)]
    for epoch in epochs[1:]:
        assert epoch.pace[2] > _NAP_S
        assert epoch.pace[2] > 1.5 * epoch.pace[0]
        assert epoch.spent["wait"] > epoch.spent["communication"]
        assert epoch.spent["wait"] > 8 * _NAP_S  # its share of two steps, 16 samples, less what rank 0 computes itself
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "run" / "sessions.jsonl").read_text().splitlines()]
    assert kinds.count("slow") == 3


def test_a_steps_parts_make_up_its_time(tmp_path: Path) -> None:
    run_job(train, 2, tmp_path / "run", None)
    steps = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    steps = [step for step in steps if step["kind"] == "step"]
    for before, step in pairwise(steps):
        whole = sum(step["spent"].values())
        assert 0 < whole <= step["seconds"] - before["seconds"] + 0.01
        assert all(seconds >= 0 for seconds in step["spent"].values())
