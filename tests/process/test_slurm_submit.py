"""`--submit slurm`: what reaches sbatch, what is refused, and that what reaches it trains."""

from __future__ import annotations

import errno
import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from squall.cli import states, submit
from squall.cli.batch import SIGNAL, Options
from squall.cli.main import main
from squall.cli.processes import Span
from squall.errors import InputError, MissingExtraError
from tests.process.standin_slurm import Slurm, flags
from tests.unit import made_runs as made

ARGUMENTS = ["train", "digits", "epochs=1", "name=two words", "--data=data"]
NOTHING: dict[str, Any] = dict.fromkeys(
    ("nodes", "gpus_per_node", "processes", "cpus_per_process", "time", "partition", "sbatch")
)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    return cluster(tmp_path, 2, monkeypatch)


def cluster(tmp_path: Path, tasks: int, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    found = Slurm(tmp_path / "slurm", tasks=tasks, path=tmp_path)
    for name in ("PATH", "STANDIN", "STANDIN_TASKS", "STANDIN_JOB"):
        monkeypatch.setenv(name, found.environ[name])
    monkeypatch.chdir(tmp_path)
    return found


def options(**given: Any) -> Options:
    if "processes" in given:
        given["processes"] = Span.parse(str(given["processes"]))
    found = submit.wanted(submit.System.slurm, **{**NOTHING, **given})
    assert found is not None
    return found


def test_a_job_is_a_plain_batch_file_with_no_pickle(slurm: Slurm, tmp_path: Path) -> None:
    asked = options(
        nodes=2, gpus_per_node=4, cpus_per_process=8, time="8h", partition="long", sbatch=["account=x y", "exclusive"]
    )
    done = submit.submit(ARGUMENTS, Path("runs/one"), asked)
    text = (slurm.folder / "job.sh").read_text()
    assert done.script.read_text() == text
    found = flags(text.replace("'x y'", "x_y"))
    assert found == {
        "account": "x_y",
        "cpus-per-task": "8",
        "exclusive": "",
        "gpus-per-node": "4",
        "job-name": "one",
        "nodes": "2",
        "ntasks-per-node": "4",
        "open-mode": "append",
        "output": f"{tmp_path}/runs/one/slurm/%j.log",
        "partition": "long",
        "requeue": "",
        "signal": SIGNAL,
        "time": "480",
    }
    command = re.search(r"srun .*\\\n(.*)\n", text)
    assert command is not None
    words = [sys.executable, "-m", "squall", *ARGUMENTS, "--out", "$out"]
    assert shlex.split(command[1]) == words
    assert "\nout=runs/one\n" in text
    assert sorted(path.name for path in Path("runs/one/slurm").iterdir()) == [f"{slurm.job}_submission.sh", "job.json"]
    bash = subprocess.run(["bash", "-n", str(done.script)], capture_output=True, text=True, timeout=30)
    assert (bash.returncode, bash.stderr) == (0, "")


def test_a_job_is_found_and_followed_by_its_run(slurm: Slurm) -> None:
    done = submit.submit(ARGUMENTS, Path("runs/one"), options(nodes=2, processes=4))
    run = states.look(states.find("one", Path("runs")))
    assert (run.state, run.job) == ("submitted", slurm.job)
    assert done.text(Path("runs")).splitlines() == [
        f"job     {slurm.job}: 4 processes on 2 nodes",
        "run     runs/one",
        f"log     runs/one/slurm/{slurm.job}.log",
        f"follow  squall runs show one      squeue --job {slurm.job}      squall runs stop one",
    ]
    assert json.loads(done.to_json()) == {
        "job": slurm.job,
        "processes": 4,
        "nodes": 2,
        "folder": "runs/one",
        "script": f"runs/one/slurm/{slurm.job}_submission.sh",
        "log": f"runs/one/slurm/{slurm.job}.log",
    }


def test_a_name_that_is_given_takes_the_place_of_the_folders(slurm: Slurm) -> None:
    submit.submit(ARGUMENTS, Path("runs/one"), options(processes=2, sbatch=["job-name=mine"]))
    assert re.findall("--job-name=.*", (slurm.folder / "job.sh").read_text()) == ["--job-name=mine"]


def test_a_job_of_one_process_is_told_so(slurm: Slurm) -> None:
    submit.submit(ARGUMENTS, Path("runs/one"), options(processes=1))
    text = (slurm.folder / "job.sh").read_text()
    assert "--processes=1 --out" in text  # a step of one task would take as many processes as there are cores
    assert "#SBATCH --time" not in text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, ["--processes", "how many? Or --gpus-per-node"]),
        ({"nodes": 3, "processes": 8}, ["--processes 8", "does not divide among 3 nodes"]),
        ({"processes": 8, "gpus_per_node": 4}, ["8 a node, but 4 GPUs"]),
        ({"processes": "2:4"}, ["--processes 2:4", "one number"]),
        ({"processes": 1, "time": "8"}, ["--time 8", "90min, 8h, 2d"]),
        ({"processes": 1, "time": "eight hours"}, ["--time eight hours"]),
        ({"processes": 1, "sbatch": ["signal=TERM"]}, ["--sbatch signal=TERM", "set by Squall"]),
        ({"processes": 1, "sbatch": ["--nodes=4", "a b"]}, ["2 mistakes", "--nodes", "account=physics"]),
        ({"processes": 1, "sbatch": ["comment=a\nrm -r x"]}, ["not of the form"]),
    ],
)
def test_mistakes_are_told_all_at_once(given: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        options(**given)
    assert [word for word in words if word not in caught.value.render()] == []


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90min", 90), ("8h", 480), ("1.5 h", 90), ("2d", 2880), ("2-12:00:00", "2-12:00:00"), ("00:30:00", "00:30:00")],
)
def test_times_are_those_of_recipes_or_of_slurm(text: str, minutes: Any) -> None:
    assert options(processes=1, time=text).time == minutes


def test_a_job_that_slurm_refuses_is_one_error_and_leaves_nothing(slurm: Slurm) -> None:
    with pytest.raises(InputError, match=r"(?s)SLURM refuses the job.*invalid partition specified"):
        submit.submit(ARGUMENTS, Path("runs/one"), options(processes=1, partition="refused"))
    assert list(Path("runs/one").iterdir()) == []


def test_a_job_that_was_taken_is_told_even_if_nothing_can_be_noted(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(submit, "write_json", full)
    with pytest.raises(InputError, match=f"(?s)job {slurm.job} is submitted, but.*No space.*scancel {slurm.job}"):
        submit.submit(ARGUMENTS, Path("runs/one"), options(processes=1))


def test_a_machine_without_slurm_or_submitit_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="no sbatch and no srun in PATH"):
        submit.submit(ARGUMENTS, tmp_path / "run", options(processes=1))
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'squall-train\[slurm\]'"):
        submit.submit(ARGUMENTS, tmp_path / "run", options(processes=1))
    assert not (tmp_path / "run").exists()


def test_flags_of_a_job_need_one() -> None:
    assert submit.wanted(None, **{**NOTHING, "processes": Span(4, 4)}) is None
    with pytest.raises(InputError, match="--nodes, --gpus-per-node without --submit"):
        submit.wanted(None, **{**NOTHING, "nodes": 2, "gpus_per_node": 8})


# -- the verb ------------------------------------------------------------------------------------------------------


def test_train_submits_its_own_command_and_says_how_to_follow(slurm: Slurm, capsys: pytest.CaptureFixture[str]) -> None:
    flags_ = ["--submit", "slurm", "--nodes", "2", "--processes", "4", "--time", "8h", "--sbatch", "account=x"]
    assert main(["train", "digits", "epochs=1", *flags_, "--out", "runs/mine", "--device", "cpu", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert f"job     {slurm.job}: 4 processes on 2 nodes" in out
    assert "squall runs show mine" in out
    text = (slurm.folder / "job.sh").read_text()
    given = "-m squall train digits epochs=1 --data=data --timeout=300 --device=cpu --quiet --out"
    assert given in text
    assert flags(text)["account"] == "x"
    assert not Path("runs/mine/records.jsonl").exists()  # nothing is trained here


def test_a_job_without_a_folder_gets_a_fresh_one(slurm: Slurm, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits", "--submit", "slurm", "--processes", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert re.fullmatch(r"runs/digits-\d{4}-\d{4}", found["folder"])
    assert found["job"] == slurm.job


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--submit", "slurm"], ["--processes", "how many?"]),
        (["--submit", "slurm", "-P", "9"], ["9 processes are more than the 8 passes"]),
        (["--submit", "pbs", "-P", "2"], ["pbs", "slurm"]),
        (["--nodes", "2"], ["--nodes without --submit"]),
        (["worker=32", "--submit", "slurm", "-P", "2"], ["no such field"]),
        (["--submit", "slurm", "-P", "2", "--partition", "refused"], ["SLURM refuses the job"]),
    ],
)
def test_a_mistake_submits_nothing_and_leaves_nothing(
    arguments: list[str], words: list[str], slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "digits", *arguments]) == 2
    err = capsys.readouterr().err
    assert [word for word in words if word not in err] == []
    assert not (slurm.folder / "job.sh").exists()
    assert not Path("runs").exists()


def test_a_dry_run_submits_nothing(slurm: Slurm, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits", "--submit", "slurm", "-P", "4", "--dry-run"]) == 0
    assert "digits: 4 processes" in capsys.readouterr().out
    assert slurm.called("sbatch") == []


def test_a_dry_run_takes_and_refuses_what_the_submission_would(
    slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    made.make(Path("runs/one"))
    dry = ["train", "digits", "--submit", "slurm", "--out", "runs/one", "--dry-run"]
    assert main([*dry, "-P", "2"]) == 0
    assert main([*dry, "-P", "9"]) == 2
    assert "9 processes are more than the 8 passes" in capsys.readouterr().err


def test_a_run_that_did_not_end_is_submitted_again_with_its_folder_and_a_finished_one_refused(
    slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made.make(Path("runs/one"))
    again = ["train", "digits", "--submit", "slurm", "-P", "2", "--out", "runs/one"]
    assert main(again) == 0
    (folder / "result.json").write_text('{"outcome": "finished"}')
    assert main(again) == 2
    assert "finished" in capsys.readouterr().err
    assert len(slurm.called("sbatch")) == 1


@pytest.mark.parametrize("tasks", [1, 2])
def test_what_reached_sbatch_trains_on_the_ranks_of_a_step_and_goes_on_when_it_comes_again(
    tasks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm = cluster(tmp_path, tasks, monkeypatch)
    assert main(["train", "digits", "epochs=6", "--submit", "slurm", "-P", str(tasks), "--out", "runs/one"]) == 0
    with slurm.start(slurm.folder / "job.sh", cwd=tmp_path) as job:
        records = Path("runs/one/records.jsonl")
        job.wait_for(lambda: records.exists() and records.read_text().count('"kind": "step"') > 3, "no steps")
        job.signal_ranks(signal.SIGUSR1)
        assert job.status() == 0, job.log
    assert slurm.requeued == [slurm.job]
    with slurm.start(slurm.folder / "job.sh", restarts=1, cwd=tmp_path) as job:
        assert job.status() == 0, job.log
    found = json.loads(Path("runs/one/result.json").read_text())
    assert (found["outcome"], found["processes"], found["steps"]) == ("finished", tasks, 72)
    assert slurm.requeued == [slurm.job]
