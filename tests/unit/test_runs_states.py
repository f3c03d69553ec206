"""What a run's folder tells of it, whatever is in the folder."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from squall.cli import overview, states, tails
from squall.errors import InputError
from squall.records import Ended, SessionEnded
from squall.report.folder import held
from tests.unit import made_runs as made


def state(folder: Path) -> str:
    return states.look(folder).state


def test_a_run_whose_lock_is_held_is_running_whatever_else_is_there(tmp_path: Path) -> None:
    folder = made.make(tmp_path / "one", result={"outcome": "stopped", "steps": 3})
    held = made.taken(folder)
    try:
        found = states.look(folder)
    finally:
        held.close()
    assert (found.state, found.step, found.epoch, found.resumable) == ("running", 30, 3, False)
    assert state(folder) == "stopped"


def test_looking_takes_no_lock_that_a_run_or_another_look_would_meet(tmp_path: Path) -> None:
    folder = made.make(tmp_path / "one")
    (folder / ".lock").touch()
    assert not held(folder)
    made.taken(folder).close()  # it would be refused
    assert not (folder / ".lock").exists()
    assert not held(folder)
    assert not (folder / ".lock").exists()  # and none is made


def test_a_lock_left_by_a_killed_process_is_no_running_one_though_its_pid_lives(tmp_path: Path) -> None:
    folder = made.make(tmp_path / "one", began=made.NOW)
    with (folder / "sessions.jsonl").open("a") as file:
        values = {"kind": "session", "time": made.NOW + 1, "host": "here", "pid": os.getpid(), "processes": 1}
        file.write(json.dumps(values) + "\n")
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(folder / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert state(folder) == "running"
    finally:
        holder.kill()
        holder.communicate()
    assert (folder / ".lock").exists()
    assert state(folder) == "killed"


@pytest.mark.parametrize("outcome", ["finished", "stopped", "diverged", "failed"])
def test_a_run_with_a_result_has_its_outcome(outcome: str, tmp_path: Path) -> None:
    folder = made.make(tmp_path / "one", result={"outcome": outcome, "steps": 25, "error": "KeyError: 'goose'"})
    made.checkpoint(folder, 24)
    found = states.look(folder)
    assert (found.state, found.step, found.why) == (outcome, 25, "KeyError: 'goose'")
    assert found.resumable == (outcome in ("stopped", "failed"))


def test_a_finished_run_tells_its_result(tmp_path: Path) -> None:
    found = states.look(made.make(tmp_path / "one", 360, result=made.FINISHED))
    assert (found.epoch, found.epochs, found.step, found.steps) == (30, 30, 360, 360)
    assert found.score == ("test accuracy", 0.9861)
    assert (found.processes, found.samples_per_second, found.seconds) == (2, 10_310.4, 9.84)
    assert found.began == made.NOW


def test_records_without_an_end_are_a_killed_run_that_resumes_from_a_whole_checkpoint(tmp_path: Path) -> None:
    folder = made.make(tmp_path / "one")
    assert (state(folder), states.look(folder).resumable) == ("killed", False)
    (folder / "checkpoints" / "step-00000028").mkdir(parents=True)  # no manifest: not whole
    assert not states.look(folder).resumable
    made.checkpoint(folder, 12)
    made.checkpoint(folder, 24)
    found = states.look(folder)
    assert (found.resumable, found.checkpoint) == (True, 24)
    assert found.score == ("test accuracy", 0.901)


def test_a_session_that_saved_and_left_is_stopped_until_another_begins(tmp_path: Path) -> None:
    folder = made.make(tmp_path / "one")
    made.write(folder / "sessions.jsonl", SessionEnded(made.NOW + 5, 30, "stopped", "SIGTERM"))
    assert (state(folder), states.look(folder).why) == ("stopped", "SIGTERM")
    made.write(folder / "sessions.jsonl", made.session(made.NOW + 9, 30, processes=3))
    found = states.look(folder)
    assert (found.state, found.processes, found.began) == ("killed", 3, made.NOW)


def test_a_result_from_before_a_resume_that_was_killed_counts_no_more(tmp_path: Path) -> None:
    folder = made.make(tmp_path / "one", result={"outcome": "stopped", "steps": 12})
    os.utime(folder / "result.json", (made.NOW + 5, made.NOW + 5))
    assert state(folder) == "stopped"
    made.write(folder / "sessions.jsonl", made.session(made.NOW + 9, 12))
    assert (state(folder), states.look(folder).step) == ("killed", 30)


def test_an_end_that_only_the_records_tell_counts_because_a_full_disk_took_no_result(tmp_path: Path) -> None:
    folder = made.make(tmp_path / "one")
    made.write(folder / "records.jsonl", Ended("failed", "", 3.0))
    assert state(folder) == "failed"
    made.write(folder / "records.jsonl", made.stepped(30))  # cut back, and gone on with
    assert state(folder) == "killed"


def test_a_job_that_waits_in_a_queue_is_submitted(tmp_path: Path) -> None:
    (tmp_path / "one" / "slurm").mkdir(parents=True)
    (tmp_path / "one" / "slurm" / "job.json").write_text('{"job": "81234"}')
    assert states.is_run(tmp_path / "one")
    assert (state(tmp_path / "one"), states.look(tmp_path / "one").job) == ("submitted", "81234")
    assert state(made.make(tmp_path / "one")) == "killed"


def test_before_an_epoch_has_ended_loss_and_speed_come_from_steps(tmp_path: Path) -> None:
    found = states.look(made.make(tmp_path / "one", 5))
    assert found.score == ("loss", 0.5)
    assert found.samples_per_second == pytest.approx(1280)


@pytest.mark.parametrize(
    ("values", "score"),
    [
        ({"test_loss": 0.5, "test_auroc": 0.75, "val_accuracy": 0.9}, ("test auroc", 0.75)),
        ({"val_accuracy": 0.9, "val_loss": 0.5}, ("validation accuracy", 0.9)),
        ({"test_loss": 0.5, "train_loss": 0.4}, ("test loss", 0.5)),
        ({"test_error_median_last5": 0.5, "train_loss": 0.4}, ("train loss", 0.4)),
        ({"test_accuracy": "nan?", "train_loss": None}, None),
    ],
)
def test_the_headline_is_what_a_person_asks_for_first(values: dict[str, Any], score: Any) -> None:
    assert states.score_of(values) == score


# -- what may be wrong with files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", [1, 40, 200, 400, -1, -30])
def test_records_torn_anywhere_are_read_up_to_there(torn: int, tmp_path: Path) -> None:
    folder = made.make(tmp_path / "one")
    for name in ("records.jsonl", "sessions.jsonl"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:torn])
    found = states.look(folder)
    assert found.state == "killed"
    assert 0 <= found.step <= 30
    assert list(tails.every(folder / "sessions.jsonl")) in ([], [json.loads(made.session(made.NOW).to_json())])


@pytest.mark.parametrize(
    "garbage",
    [b"", b"\xff\xfe\x00", b"[]", b"3", b"{", b"null", b'{"kind": 3}', b'{"kind": "step", "step": "x"}', b"[" * 99_999],
)
def test_garbage_in_any_file_of_a_run_is_no_error(garbage: bytes, tmp_path: Path) -> None:
    folder = made.make(tmp_path / "one")
    (folder / "slurm").mkdir()
    for name in ("records.jsonl", "sessions.jsonl", "result.json", "slurm/job.json", ".lock", "run.json"):
        (folder / name).write_bytes(garbage)
    found = states.look(folder)
    assert (found.state, found.step, found.score) == ("killed", 0, None)
    assert states.found_in(tmp_path) == [folder]


def test_a_run_of_nothing_but_unreadable_names_is_no_error(tmp_path: Path) -> None:
    for name in ("records.jsonl", "sessions.jsonl", "result.json", ".lock", "recipe.toml"):
        (tmp_path / "one" / name).mkdir(parents=True)
    assert state(tmp_path / "one") == "killed"


def test_folders_and_files_of_others_are_no_runs(tmp_path: Path) -> None:
    made.make(tmp_path / "mine")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "result.json").write_text('{"accuracy": 1}')
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / ".lock").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert [folder.name for folder in states.found_in(tmp_path)] == ["mine"]
    assert states.found_in(tmp_path / "nosuch") == []


def test_a_run_that_is_just_setting_up_or_was_killed_then_is_one(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "recipe.toml").touch()
    held = made.taken(tmp_path / "one")
    assert state(tmp_path / "one") == "running"
    assert [folder.name for folder in states.found_in(tmp_path)] == ["one"]
    (tmp_path / "one" / ".lock").rename(tmp_path / "kept")
    held.close()
    (tmp_path / "kept").rename(tmp_path / "one" / ".lock")
    assert state(tmp_path / "one") == "killed"


def junk(values: Any, chance: random.Random) -> Any:
    """The values with some of them replaced by what no run writes."""
    if chance.random() < 0.15:
        return chance.choice([None, [], {}, "x", -1, 1e308, "inf", "nan", True, 10**400, {"a": []}])
    if isinstance(values, dict):
        return {key: item if key == "kind" else junk(item, chance) for key, item in values.items()}
    return values


@pytest.mark.parametrize("seed", range(20))
def test_no_record_however_strange_stops_a_list_and_its_json_is_strict(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    folder = made.make(tmp_path / "one", 30, result=made.FINISHED if seed % 2 else None)
    made.write(folder / "sessions.jsonl", SessionEnded(made.NOW + 5, 30, "stopped", "SIGTERM"))
    for name in ("records.jsonl", "sessions.jsonl", "result.json"):
        if (folder / name).exists():
            lines = [json.dumps(junk(json.loads(line), chance)) for line in (folder / name).read_text().splitlines()]
            (folder / name).write_text("\n".join(lines) + "\n")
    run, sessions = states.look(folder), list(tails.every(folder / "sessions.jsonl"))
    overview.table([run], made.NOW)
    overview.detail(run, tmp_path, sessions, states.checkpoints(folder), made.NOW)
    json.dumps(overview.fields(run), allow_nan=False)


# -- which run -----------------------------------------------------------------------------------------------------


def test_runs_are_listed_by_when_they_moved_the_last_first(tmp_path: Path) -> None:
    for name, began in (("b", 20), ("c", 30), ("a", 10)):
        made.make(tmp_path / name, 1, began=made.NOW + began)
    assert [folder.name for folder in states.found_in(tmp_path)] == ["c", "b", "a"]
    made.write(tmp_path / "a" / "records.jsonl", made.stepped(1))  # it still runs, as squall resume last has it
    assert states.find("last", tmp_path).name == "a"
    assert states.find("a", tmp_path) == states.find(str(tmp_path / "a"), Path("runs")) == tmp_path / "a"


def test_a_run_that_is_not_there_is_a_mistake_that_names_near_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run in .* yet"):
        states.find("last", tmp_path)
    made.make(tmp_path / "digits-1121-0029", 1)
    with pytest.raises(InputError, match=r"(?s)digits-1121-0030 is no run's folder.*near +digits-1121-0029"):
        states.find("digits-1121-0030", tmp_path)
    with pytest.raises(InputError, match=r"(?s)newest +digits-1121-0029"):
        states.find("zzz", tmp_path)


# -- size ----------------------------------------------------------------------------------------------------------


def test_of_a_long_file_only_the_ends_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made.make(tmp_path / "one", 24)
    line = made.stepped(24).to_json().encode() + b"\n"
    with (folder / "records.jsonl").open("ab") as file:
        file.write(line * 40_000)
    parsed: list[int] = []
    loads = json.loads

    def counting(text: bytes) -> Any:
        parsed.append(len(text))
        return loads(text)

    monkeypatch.setattr("squall.cli.tails.json.loads", counting)
    found = states.look(folder)
    assert found.step == 25
    assert (found.score, len(parsed) < 200) == (("loss", 0.5), True)  # the epoch lies deeper than anybody looks


def test_an_epoch_behind_thousands_of_steps_is_found(tmp_path: Path) -> None:
    folder = made.make(tmp_path / "one", 24)
    made.write(folder / "records.jsonl", *[made.stepped(step, epoch=2) for step in range(24, 4000)])
    found = states.look(folder)
    assert (found.step, found.score) == (4000, ("test accuracy", 0.901))
