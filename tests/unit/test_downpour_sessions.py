"""Simulated Downpour runs through `squall.train`: folders, sessions that go on, what is asked for."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import squall
from squall.errors import DivergedError, InputError
from squall.recipe import load, override
from squall.records import Record


def recipe(*overrides: str) -> squall.Recipe:
    small = ["epochs=3", "data.train_limit=200", "data.test_limit=50", "model.width=4", "downpour.replicas=3"]
    return override(load("digits-downpour"), [*small, *overrides])


def train(out: Path | None, *overrides: str, sinks: Any = ()) -> squall.Result:
    return squall.train(None, recipe(*overrides), out=out, engine="simulated", sinks=sinks)


def test_a_run_leaves_a_folder_that_can_be_looked_at(tmp_path: Path) -> None:
    result = train(tmp_path / "run")
    values = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result.outcome == values["outcome"] == "finished"
    assert values["minibatches"]["settled"] == values["minibatches"]["of"] == 39
    assert sum(own["minibatches"] for own in values["replicas"].values()) == 39
    model = squall.load(tmp_path / "run")
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    assert kinds[0] == "started"
    assert kinds[-1] == "ended"
    assert kinds.count("push") == 39
    assert kinds.count("epoch") == 3


def test_the_same_seed_gives_the_same_records_and_weights(tmp_path: Path) -> None:
    hashes = set()
    lines = []
    for name in ("one", "two"):
        hashes.add(train(tmp_path / name).values["weights_sha256"])
        text = (tmp_path / name / "records.jsonl").read_text().splitlines()[1:-1]  # with neither folder nor memory
        lines.append(text)
    assert len(hashes) == 1
    assert lines[0] == lines[1]


class Stop:
    """Asks the process to stop after so many pushes, as Ctrl-C does."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, record: Record) -> None:
        if record.kind == "push":
            self.left -= 1
            if not self.left:
                signal.raise_signal(signal.SIGINT)


def test_a_stopped_run_goes_on_and_its_ledger_adds_up(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt, match="stopped by Ctrl-C after minibatch"):
        train(out, sinks=(Stop(17),))
    stopped = json.loads((out / "result.json").read_text())
    assert stopped["outcome"] == "stopped"
    result = train(out)
    assert result.outcome == "finished"
    values = result.values
    for shard in values["minibatches"]["shards"]:
        assert shard == {"applied": 39, "dropped": 0, "lost": 0, "restarts": 0}
    assert values["pushes"]["computed"] == 39 + values["pushes"]["repeated"]
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert sorted(r["minibatch"] for r in records if r["kind"] == "push") == list(range(39))
    assert [r["epoch"] for r in records if r["kind"] == "epoch"] == [0, 1, 2]
    seconds = [r["seconds"] for r in records if r["kind"] == "push"]
    assert seconds == sorted(seconds)
    with pytest.raises(InputError, match="holds a run that is finished"):
        train(out)


def test_another_recipe_is_refused_in_the_folder_of_a_run_that_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", sinks=(Stop(5),))
    with pytest.raises(InputError, match="begun by another recipe"):
        train(tmp_path / "run", "lr=0.2")


def test_a_diverging_run_says_so_and_leaves_word(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"replica-\d"):
        train(tmp_path / "run", "lr=1e30")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["outcome"] == "diverged"


def test_nothing_is_left_of_a_run_that_never_began(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="more than the model can be cut into"):
        train(tmp_path / "run", "downpour.shards=100000")
    assert not (tmp_path / "run").exists()


def test_an_engine_is_refused_where_there_are_no_roles() -> None:
    with pytest.raises(InputError, match="an engine runs the roles"):
        squall.train(None, load("digits"), engine="simulated")
    with pytest.raises(InputError, match="engine=slurm is not known"):
        squall.train(None, recipe(), engine="slurm")
