"""The template with `squall train` itself: a job that is interrupted comes again and ends with the weights of one that
was not.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from squall import records
from squall.cli import states
from tests.process.standin_slurm import ROOT, Job, Slurm

TEMPLATE = ROOT / "examples" / "slurm.sbatch"
ARGUMENTS = ("digits", "epochs=4")
LONG = ("digits", "epochs=4000")


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    return Slurm(tmp_path / "slurm", tasks=2, path=Path(sys.executable).parent)


def result(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return values


def steps(folder: Path) -> int:
    """Updates so far; a line may be half written."""
    path = folder / "records.jsonl"
    return path.read_text().count('"kind": "step"') if path.exists() else 0


def training(slurm: Slurm, tmp_path: Path, arguments: tuple[str, ...]) -> tuple[Job, Path]:
    """The job, once its run has come a few steps far."""
    job, folder = slurm.start(TEMPLATE, *arguments, cwd=tmp_path), tmp_path / "runs" / f"job-{slurm.job}"
    job.wait_for(lambda: steps(folder) > 3, "no steps")
    return job, folder


def test_an_interrupted_job_comes_again_and_ends_with_the_weights_of_one_that_was_not(
    slurm: Slurm, tmp_path: Path
) -> None:
    job, folder = training(slurm, tmp_path, ARGUMENTS)
    with job:
        job.signal_ranks(signal.SIGUSR1)
        assert job.status() == 0, job.log
    assert slurm.requeued == [slurm.job]
    assert result(folder)["outcome"] == "stopped"
    saved = result(folder)["steps"]
    assert 3 < saved < 48
    with slurm.start(TEMPLATE, *ARGUMENTS, restarts=1, cwd=tmp_path) as last:
        assert last.status() == 0, last.log
    assert slurm.requeued == [slurm.job]
    sessions = [record for record in records.read(folder / "sessions.jsonl") if record["kind"] == "session"]
    assert [session["start_step"] for session in sessions] == [0, saved]
    alone = [sys.executable, "-m", "squall", "train", *ARGUMENTS, "--processes", "1", "--out", "alone"]
    done = subprocess.run(alone, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert result(folder)["weights_sha256"] == result(tmp_path / "alone")["weights_sha256"]
    assert result(folder)["ledger"] == result(tmp_path / "alone")["ledger"]


def test_a_run_stopped_by_a_person_leaves_its_job_for_good(slurm: Slurm, tmp_path: Path) -> None:
    job, folder = training(slurm, tmp_path, LONG)
    with job:
        assert states.look(folder).job == slurm.job
        stop = [sys.executable, "-m", "squall", "runs", "stop", str(folder), "--json"]
        done = subprocess.run(stop, cwd=tmp_path, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        assert job.status() == 143, job.log
    found = json.loads(done.stdout)
    assert found["state"] == "stopped"
    broken_off = found["step"] % 12 == 0  # of 12 steps an epoch: perhaps in the evaluation, then it is one step less
    assert found["checkpoint"] in {found["step"], found["step"] - broken_off}
    assert slurm.requeued == []
    assert not {".job", ".request.json"} & {path.name for path in folder.iterdir()}
