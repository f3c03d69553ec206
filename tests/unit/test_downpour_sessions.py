"""Simulated Downpour runs through `squall.train`: folders, sessions that go on, what is asked for."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import squall
from squall.errors import DivergedError, InputError, RunError
from squall.recipe import load, override
from squall.records import Ended, Pushed, Record, Saved, SaveFailed, SessionBegan
from squall.server.disk import OnDisk
from squall.training.roles import alone


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
    assert stopped["steps"] == stopped["minibatches"]["settled"] == stopped["pushes"]["computed"] >= 17
    assert [shard["applied"] for shard in stopped["minibatches"]["shards"]] == [stopped["steps"]] * 2
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


class Breaks:
    """Ends a run by an error after so many pushes; `last` is the last push."""

    def __init__(self, after: int) -> None:
        self.left, self.last = after, Pushed(0.0, "", 0, 0, 0, 0.0, [], 0, 0.0, 0.0, 0, 0)

    def __call__(self, record: Record) -> None:
        if isinstance(record, Pushed):
            self.left, self.last = self.left - 1, record
            if not self.left:
                raise DivergedError("the loss is nan")


@pytest.mark.parametrize("pushes", [5, 20])
def test_numbers_of_a_run_that_broke_off_are_those_of_its_last_push(pushes: int, tmp_path: Path) -> None:
    breaks = Breaks(pushes)
    with pytest.raises(DivergedError):
        train(tmp_path / "run", sinks=(breaks,))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["steps"] == result["diverged_at_step"] == breaks.last.settled == pushes
    assert result["seconds"] == breaks.last.seconds > 0
    ended = (tmp_path / "run" / "sessions.jsonl").read_text().splitlines()[-1]
    assert json.loads(ended)["step"] == pushes


def without_manifests(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """The disk is full from the set after so many on."""
    note_whole, made = OnDisk.note_whole, [0]

    def noted(self: OnDisk, number: int, values: dict[str, Any]) -> None:
        made[0] += 1
        if made[0] > after:
            raise OSError(28, "No space left on device")
        note_whole(self, number, values)

    monkeypatch.setattr(OnDisk, "note_whole", noted)


@pytest.mark.parametrize(
    ("sets", "advice"),
    [
        (0, "nothing could be saved: the run starts from its beginning again"),
        (1, "that minibatch could not be saved; from minibatch {}: run it again: "),
    ],
)
def test_a_stop_that_could_not_be_saved_says_from_where_the_run_goes_on(
    sets: int, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_manifests(monkeypatch, sets)
    out, records = tmp_path / "run", list[Record]()
    with pytest.raises(KeyboardInterrupt) as error:
        train(out, sinks=(Stop(17), records.append))
    saved = [record.step for record in records if isinstance(record, Saved)]
    (ended,) = (record for record in records if isinstance(record, Ended))
    assert len(saved) == sets
    assert ended.advice.startswith(advice.format(*saved))
    assert ended.advice in str(error.value)
    assert [record.kept for record in records if isinstance(record, SaveFailed)][-1] == (saved or [None])[0]
    monkeypatch.undo()
    again: list[Record] = []
    assert train(out, sinks=(again.append,)).outcome == "finished"
    assert [record.start_step for record in again if isinstance(record, SessionBegan)] == (saved or [0])


def test_a_finished_run_has_done_all_minibatches_though_its_last_set_is_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_manifests(monkeypatch, 1)
    assert train(tmp_path / "run").values["steps"] == 39


def test_final_weights_are_those_that_the_program_ended_with_or_none(tmp_path: Path) -> None:
    out = tmp_path / "run"

    def damages(record: Record) -> None:
        if isinstance(record, Saved) and record.number == 4:  # after one for each epoch
            (out / "server" / f"shard-1-{record.number:06}.safetensors").write_bytes(b"torn")

    with pytest.raises(RunError, match=r"final weights of shard 1(?s:.*)newest whole snapshot is number"):
        train(out, sinks=(damages,))
    assert not (out / "weights.safetensors").exists()
    result = json.loads((out / "result.json").read_text())
    assert (result["outcome"], result["steps"]) == ("failed", 39)
    assert train(out).values["minibatches"]["settled"] == 39


def test_nothing_is_left_of_a_run_that_never_began(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="more than the model can be cut into"):
        train(tmp_path / "run", "downpour.shards=100000")
    assert not (tmp_path / "run").exists()


def test_an_engine_is_refused_where_there_are_no_roles() -> None:
    with pytest.raises(InputError, match=r"engine= with strategy=sync(?s:.*)an engine runs the roles"):
        squall.train(None, load("digits"), engine="simulated")
    with pytest.raises(InputError, match=r"cluster= with strategy=sync"):
        squall.train(None, load("digits"), cluster="10.0.0.1:6379")
    with pytest.raises(InputError, match="engine=slurm is not known"):
        squall.train(None, recipe(), engine="slurm")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"profile": True}, "profile= with strategy=downpour"),
        ({"other_arithmetic": True}, "other_arithmetic= with strategy=downpour"),
        ({"world": alone("cpu"), "profile": True}, r"world=, profile= with strategy=downpour(?s:.*)leave them away"),
        ({"cluster": "10.0.0.1:6379"}, "cluster= with engine=simulated"),
        ({"trust_cluster": True}, "trust_cluster= with engine=simulated"),
    ],
)
def test_what_would_be_ignored_is_refused(given: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        squall.train(None, recipe(), out=tmp_path / "run", engine="simulated", **given)
    assert not (tmp_path / "run").exists()


def test_ranks_of_a_job_do_not_each_train_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"one of 2: each would(?s:.*)start it once, with downpour.replicas=2"):
        train(tmp_path / "run")
    assert not (tmp_path / "run").exists()
