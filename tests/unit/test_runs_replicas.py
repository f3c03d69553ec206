"""`squall runs` of runs of replicas and shards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from squall.cli import overview, states, tails
from squall.cli.main import main
from squall.records import SessionEnded
from tests.fabricated import NOON, write_lines
from tests.fabricated_downpour import Replicated


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def snapshots(folder: Path, number: int, settled: int) -> None:
    """A set that two shards have saved."""
    server = folder / "server"
    server.mkdir(exist_ok=True)
    for shard in range(2):
        (server / f"shard-{shard}-{number:06}.safetensors").write_bytes(b"0" * 500_000)
    (server / f"{number:06}.json").write_text(json.dumps({"settled": settled, "records": 17}))


def test_a_finished_run_says_what_it_reached_and_on_how_many_replicas() -> None:
    folder = Replicated().write(Path("runs/one"))
    found = states.look(folder)
    assert (found.state, found.epoch, found.step, found.steps) == ("finished", 3, 120, 120)
    assert (found.strategy, found.processes, found.shards) == ("downpour", 4, 2)
    line = overview.table([found], NOON + 120)[1]
    assert "120/120   test accuracy 95.00 %   4 replicas       1,592" in line


def test_a_killed_run_is_where_its_last_push_is_and_goes_on_from_its_newest_whole_set() -> None:
    folder = Replicated(until=50, outcome=None).write(Path("runs/one"))
    assert not states.look(folder).resumable
    snapshots(folder, 1, 40)
    (folder / "server" / "shard-0-000002.safetensors").write_bytes(b"0")  # a set that is not whole
    found = states.look(folder)
    assert (found.state, found.epoch, found.step, found.checkpoint) == ("killed", 2, 50, 40)
    assert found.resumable
    assert found.score == ("test accuracy", pytest.approx(0.65))
    assert found.seconds == pytest.approx(5.5)
    assert "killed, resume     2/3   50/120" in overview.table([found], NOON + 9)[1]


def test_a_run_in_its_first_epoch_tells_the_loss_and_speed_of_its_pushes() -> None:
    found = states.look(Replicated(until=39, outcome=None).write(Path("runs/one")))
    assert (found.epoch, found.step) == (1, 39)
    assert found.score == ("loss", pytest.approx(2.3 / (1 + 39 / 40)))
    assert found.samples_per_second == pytest.approx(160.0)


def test_one_run_is_shown_in_its_own_words(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Replicated(until=50, outcome=None).write(Path("runs/one"))
    write_lines(
        folder / "sessions.jsonl", [SessionEnded(NOON + 6, 50, "stopped", "stopped by Ctrl-C after minibatch 50")]
    )
    snapshots(folder, 1, 40)
    snapshots(folder, 2, 50)
    assert main(["runs", "show", "one"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "state         stopped by Ctrl-C after minibatch 50      squall resume one" in lines
    assert "reached       epoch 2 of 3, minibatch 50 of 120" in lines
    assert "replicas      4 and 2 shards, 159 samples/s" in lines
    checkpoints = [[part.strip() for part in line.split("   ")][-3:-1] for line in lines[-2:]]
    assert checkpoints == [["minibatch 50", "1.0 MB"], ["minibatch 40", "1.0 MB"]]
    assert [line for line in lines if "process" in line or " step " in line] == []
    assert main(["runs", "show", "one", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["strategy"], found["processes"], found["shards"], found["checkpoint"]) == ("downpour", 4, 2, 50)
    assert [one["step"] for one in found["checkpoints"]] == [50, 40]


def test_a_long_run_is_looked_at_by_its_end() -> None:
    folder = Replicated(epochs=2, per_epoch=9000, outcome=None, until=17_990).write(Path("runs/one"))
    read = tails.last(folder / "records.jsonl", "push")
    assert read["push"]["settled"] == 17_990
    assert states.look(folder).step == 17_990
