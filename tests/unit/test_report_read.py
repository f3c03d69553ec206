"""A run's folder is read for what it is: finished, going on, killed, torn, cut back, damaged."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest

from squall.records import RecordFile, SessionBegan, SessionEnded, Stepped
from squall.report import Reader
from squall.report import folder as names
from squall.report.series import running_mean, stretches, thinned, window_of
from squall.report.sessions import sessions as sessions_of
from squall.report.tail import Tail
from squall.report.values import number
from squall.run import folder
from tests.fabricated import FINGERPRINT, Made, sessions, write_lines


def test_the_names_of_files_are_those_of_the_run_folder() -> None:
    named = (names.RECORDS, names.SESSIONS, names.RECIPE, names.STARTED, names.RESULT, names.LOCK)
    assert named == (folder.RECORDS, folder.SESSIONS, folder.RECIPE, folder.STARTED, folder.RESULT, folder._LOCK)


# -- the tail of a growing file --------------------------------------------------------------------------------------


def lines(*numbers: int) -> bytes:
    return b"".join(json.dumps({"n": n}).encode() + b"\n" for n in numbers)


def test_only_what_is_new_is_read_and_a_torn_end_waits_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    tail = Tail(path)
    assert tail.look() == (False, [])
    path.write_bytes(lines(0, 1) + b'{"n": ')
    assert tail.look() == (False, [{"n": 0}, {"n": 1}])
    assert tail.torn
    assert tail.look() == (False, [])
    with path.open("ab") as file:
        file.write(b"2}\n")
    assert tail.look() == (False, [{"n": 2}])
    assert not tail.torn


@pytest.mark.parametrize("after", [lines(0), lines(0, 7), lines(0, 7, 8, 9), b""])
def test_records_that_were_cut_back_are_read_anew_even_if_they_grew_again(tmp_path: Path, after: bytes) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(lines(0, 1, 2))
    tail = Tail(path)
    tail.look()
    path.write_bytes(after)
    anew, records = tail.look()
    assert anew
    assert records == [json.loads(line) for line in after.splitlines()]


def test_a_file_that_is_gone_voids_what_was_read(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(lines(0))
    tail = Tail(path)
    tail.look()
    path.unlink()
    assert tail.look() == (True, [])
    assert tail.look() == (False, [])


def test_lines_that_are_no_records_are_counted_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(lines(0) + b"{broken\n[1]\n\xff\xfe\n\n" + b"[" * 100_000 + b"\n" + lines(1))
    tail = Tail(path)
    assert tail.look() == (False, [{"n": 0}, {"n": 1}])
    assert tail.damaged == 4


# -- what state a run is in ------------------------------------------------------------------------------------------


def test_a_finished_run(tmp_path: Path) -> None:
    run = Reader(Made().write(tmp_path / "a")).read()
    assert (run.state, run.steps_done, len(run.epochs), run.processes, run.torn) == ("finished", 72, 6, (2,), False)
    assert run.measured("test", "accuracy") == run.result["test_accuracy"]
    assert run.speed == run.result["samples_per_second"]


def test_a_killed_run_has_no_end_and_a_torn_one_loses_its_last_line_only(tmp_path: Path) -> None:
    path = Made(until=3, steps_more=5, outcome=None).write(tmp_path / "a")
    assert Reader(path).read().state == "killed"
    os.truncate(path / "records.jsonl", (path / "records.jsonl").stat().st_size - 30)
    run = Reader(path).read()
    assert (run.state, run.torn, run.steps_done) == ("killed", True, 40)


def test_a_run_goes_on_while_its_lock_is_held_whatever_its_result_says(tmp_path: Path) -> None:
    path = Made(until=2, outcome="stopped").write(tmp_path / "a")
    assert Reader(path).read().state == "stopped"
    with (path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert Reader(path).read().state == "running"
    assert Reader(path).read().state == "stopped"


def test_a_result_from_before_the_last_session_began_does_not_count(tmp_path: Path) -> None:
    path = Made(until=2, outcome=None).write(tmp_path / "a")
    (path / "result.json").write_text(json.dumps({"outcome": "stopped"}))
    now = (path / "result.json").stat().st_mtime
    write_lines(path / "sessions.jsonl", [SessionBegan(now + 5, "here", 7, 2, 12, FINGERPRINT, "0.1.0")])
    assert Reader(path).read().state == "killed"
    write_lines(path / "sessions.jsonl", [SessionEnded(now + 9, 24, "stopped", "SIGTERM")])
    assert Reader(path).read().state == "stopped"


def test_a_job_that_waits_for_its_turn_is_submitted(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "job.json").write_text('{"job": 17}')
    assert Reader(tmp_path).read().state == "submitted"


def test_a_reader_sees_what_a_run_appends(tmp_path: Path) -> None:
    path = Made(until=2, outcome=None).write(tmp_path / "a")
    reader = Reader(path)
    assert reader.read().steps_done == 24
    file = RecordFile(path / "records.jsonl")
    file(Stepped(24, 2, 128, float("inf"), 0.1, 9.0))
    file.close()
    run = reader.read()
    assert run.steps_done == 25
    assert run.steps.loss[-1] == float("inf")


def test_steps_that_come_again_take_the_place_of_the_old(tmp_path: Path) -> None:
    path = Made(until=2, outcome=None).write(tmp_path / "a")
    write_lines(path / "records.jsonl", [Stepped(12, 1, 128, 7.0, 0.1, 9.0)])
    run = Reader(path).read()
    assert (run.steps_done, run.steps.loss[-1], len(run.steps)) == (13, 7.0, 13)


def test_sessions_are_put_together_from_their_events(tmp_path: Path) -> None:
    path = Made().write(tmp_path / "a")
    write_lines(path / "sessions.jsonl", sessions())
    first, second, third = sessions_of(Reader(path).read())
    assert [s.outcome for s in (first, second, third)] == ["killed", "stopped", "finished"]
    assert [s.processes for s in (first, second, third)] == [4, 2, 3]
    assert (first.last_step, second.first_step, second.last_step) == (24, 24, 53)
    assert [bool(save.error) for save in second.saves] == [False, True]
    assert third.seconds == pytest.approx(50)


@pytest.mark.parametrize("odd", [None, True, [], {}, "no number", "1e999", 10**400])
def test_what_is_no_number_is_not_finite(odd: object) -> None:
    assert not abs(number(odd)) < float("inf")


# -- long series -----------------------------------------------------------------------------------------------------


def test_thinning_keeps_the_ends_and_every_spike() -> None:
    y = [1.0] * 100_000
    y[31_337], y[77_777], y[500] = 9.0, -9.0, float("nan")
    x, kept = thinned(range(100_000), y)
    assert len(kept) <= 1100
    assert (x[0], x[-1]) == (0, 99_999)
    assert dict(zip(x, kept, strict=True))[31_337] == 9.0
    assert dict(zip(x, kept, strict=True))[77_777] == -9.0
    assert x == sorted(x)


def test_the_running_mean_is_that_of_a_slow_twin_and_weighs_by_samples() -> None:
    y = [float((7 * i) % 13) for i in range(200)]
    weights = [29.0 if i % 12 == 11 else 128.0 for i in range(200)]
    x, means = running_mean(range(200), y, weights, 9, most=200)
    for at, mean in zip(x, means, strict=True):
        near = range(max(int(at) - 4, 0), min(int(at) + 5, 200))
        assert mean == pytest.approx(sum(y[i] * weights[i] for i in near) / sum(weights[i] for i in near))


def test_a_huge_or_infinite_loss_does_not_spoil_the_mean_of_what_follows() -> None:
    y = [1e30, float("inf"), float("nan")] + [0.5] * 997
    _, means = running_mean(range(1000), y, [1.0] * 1000, window_of(1000))
    assert means[-1] == 0.5
    assert running_mean([0.0], [float("nan")], [1.0], 1) == ([], [])
    assert running_mean([], [], [], 1) == ([], [])


@pytest.mark.parametrize(("count", "most"), [(0, 4), (3, 4), (10, 4), (-1, 4)])
def test_stretches_cover_every_position_once(count: int, most: int) -> None:
    found = stretches(count, most)
    assert [i for stretch in found for i in stretch] == list(range(count))
    assert len(found) <= most
    assert all(found)
