"""`squall runs` and `squall runs show` as a person and a program see them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from squall.cli import overview, states, tails
from squall.cli.main import main
from squall.records import Saved, SaveFailed, SessionEnded, Slow
from tests.unit import made_runs as made


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """A finished run, a killed one that can go on, a failed one; the newest first."""
    runs = Path("runs")
    made.make(runs / "digits-1121-0029", 360, result=made.FINISHED)
    made.checkpoint(made.make(runs / "digits-1121-0030", began=made.NOW + 60), 24, 934_000)
    failed = {"outcome": "failed", "steps": 3, "error": "your code raised KeyError at train[7]", "seconds": 0.4}
    made.make(runs / "photos-1121-0031", 3, began=made.NOW + 120, result=failed)
    return states.found_in(runs)


TABLE = """\
run                state            epoch      step   reached                 processes   samples/s       begun    took
photos-1121-0031   failed            1/30     3/360   loss 0.5000                     2       1,280    28 s ago   0.4 s
digits-1121-0030   killed, resume    3/30    30/360   test accuracy 90.10 %           2      10,310    88 s ago   3.0 s
digits-1121-0029   finished         30/30   360/360   test accuracy 98.61 %           2      10,310   2 min ago   9.8 s
"""

DETAIL = """\
run           runs/digits-1121-0030
state         stopped by SIGTERM after step 30      squall resume digits-1121-0030
reached       epoch 3 of 30, step 30 of 360
so far        test accuracy 90.10 %
processes     3, 10,310 samples/s
begun         BEGUN, 3 h ago; 3.0 s of work
sessions      BEGUN   node7 pid 4711   2 processes   from step 0   1 save   killed
              LATER   node7 pid 4711   3 processes   from step 24   stopped by SIGTERM after step 30
notable       step 30 could not be saved: No space left on device
              rank 1 took 1.6 times the median in epoch 2
checkpoints   step 24   0.9 MB   SAVED
"""


def test_the_list_is_a_table_with_the_newest_first(three: list[Path]) -> None:
    lines = overview.table([states.look(folder) for folder in three], made.NOW + 148)
    assert lines == TABLE.splitlines()


def test_one_run_is_shown_with_its_sessions_and_checkpoints(
    three: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = three[1]
    made.write(
        folder / "sessions.jsonl",
        Saved(step=24, blocked=0.01, seconds=0.1, num_bytes=934_000),
        made.session(made.NOW + 3600, 24, processes=3),
        SaveFailed(30, "No space left on device", 24),
        Slow(1, 1, 1.62),
        SessionEnded(made.NOW + 3601, 30, "stopped", "stopped by SIGTERM after step 30"),
    )
    manifest = next((folder / "checkpoints").glob("*/manifest.json"))
    os.utime(manifest, (made.NOW, made.NOW))
    run, sessions = states.look(folder), list(tails.every(folder / "sessions.jsonl"))
    lines = overview.detail(run, Path("runs"), sessions, states.checkpoints(folder), made.NOW + 10_860)
    text = DETAIL
    for word, time in (("BEGUN", 60), ("LATER", 3600), ("SAVED", 0)):
        text = text.replace(word, overview._clock(made.NOW + time))
    assert lines == text.splitlines()
    assert main(["runs", "show", "digits-1121-0030", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["state"], found["resumable"], found["why"]) == ("stopped", True, "stopped by SIGTERM after step 30")
    assert [record["kind"] for record in found["sessions"]][-1] == "session_ended"
    assert [one["step"] for one in found["checkpoints"]] == [24]


def test_a_run_with_an_error_shows_it(three: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "show", "last"]) == 0
    assert "state       failed: your code raised KeyError at train[7]\n" in capsys.readouterr().out


def test_a_run_whose_job_comes_again_is_not_resumed_by_hand(
    three: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (three[1] / ".job").write_text("81234\n")
    assert main(["runs"]) == 0
    out = capsys.readouterr().out
    assert "killed, job 81234" in out
    assert "squall resume" not in out
    assert main(["runs", "show", "digits-1121-0030"]) == 0
    out = capsys.readouterr().out
    assert "81234      squeue --job 81234" in out
    assert "squall resume" not in out


def test_what_is_least_needed_leaves_a_narrow_terminal(three: list[Path]) -> None:
    runs = [states.look(folder) for folder in three]
    for width in (110, 80, 60):
        lines = overview.table(runs, made.NOW + 148, width)
        assert max(map(len, lines)) <= max(width, 68)
        assert all(name in lines[0] for name in ("run", "state", "step", "reached"))
    assert overview.table(runs, made.NOW + 148, 400) == TABLE.splitlines()


def test_every_form_of_the_list_says_the_same(three: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for arguments in (["runs", "--json"], ["runs", "list", "--json"], ["runs", "list", "--in", "runs", "--json"]):
        assert main(arguments) == 0
        printed.append(json.loads(capsys.readouterr().out))
    assert printed[0] == printed[1] == printed[2]
    assert [run["run"] for run in printed[0]] == [folder.name for folder in three]
    assert printed[0][1]["score"] == {"test accuracy": 0.901}
    assert main(["runs"]) == 0
    assert capsys.readouterr().out.endswith("\nsquall runs show photos-1121-0031      squall resume digits-1121-0030\n")


def test_a_loss_that_is_no_number_is_none_and_the_json_stays_strict(capsys: pytest.CaptureFixture[str]) -> None:
    made.write(made.make(Path("runs/one"), 3) / "records.jsonl", made.stepped(3, loss=float("nan")))
    assert main(["runs", "--json"]) == 0
    out = capsys.readouterr().out
    assert "NaN" not in out
    assert json.loads(out)[0]["score"] is None


def test_a_list_is_cut_to_the_newest_and_says_so(three: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--limit", "1"]) == 0
    out = capsys.readouterr().out
    assert "photos-1121-0031" in out
    assert "digits-1121-0029" not in out
    assert "and 2 older: --limit 3" in out
    assert main(["runs", "list", "--limit", "2", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_runs_elsewhere_are_named_by_their_paths(three: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs").rename("elsewhere")
    assert main(["runs", "--in", "elsewhere"]) == 0
    assert "squall resume elsewhere/digits-1121-0030" in capsys.readouterr().out


def test_no_runs_are_no_error_but_a_folder_that_is_not_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs"]) == 0
    assert capsys.readouterr().out == "no runs in runs/ yet      squall train digits\n"
    assert main(["runs", "--json"]) == 0
    assert capsys.readouterr().out == "[]\n"
    assert main(["runs", "--in", "nosuch"]) == 2
    assert "nosuch is no folder" in capsys.readouterr().err


def test_runs_come_without_torch(three: list[Path]) -> None:
    for arguments in (["runs"], ["runs", "show", "last"], ["runs", "stop", "digits-1121-0029"]):
        code = (
            "import sys; from squall.cli.main import main\n"
            f"status = main({arguments!r})\n"
            "sys.exit(99 if 'torch' in sys.modules else status)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"),
        (99, "99 s"),
        (100, "2 min"),
        (5_999, "100 min"),
        (7_200, "2 h"),
        (172_799, "48 h"),
        (259_200, "3 days"),
    ],
)
def test_ages_are_in_their_largest_unit(seconds: float, text: str) -> None:
    assert overview.ago(seconds) == f"{text} ago"
