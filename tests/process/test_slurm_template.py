"""`examples/slurm.sbatch` run by bash, with stand-ins for SLURM's commands: what it makes of each way to end."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from squall.cli import batch
from tests.process.standin_slurm import ROOT, Job, Slurm, flags

TEMPLATE = ROOT / "examples" / "slurm.sbatch"

TRAINING = f"""#!{sys.executable}
# Trains until it is signalled, saves (as long as that takes), leaves; goes on with what it saved.
import os, pathlib, signal, sys, time

out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
rank = os.environ["SLURM_PROCID"]
out.mkdir(parents=True, exist_ok=True)
noted = []
for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: noted.append(number))
if sys.argv[2] == "fails":
    sys.exit(int(sys.argv[3]))
if (out / f"saved-{{rank}}").exists():
    print(f"rank {{rank}} goes on", flush=True)
    sys.exit(0)
(out / f"trains-{{rank}}").touch()
while not noted:
    time.sleep(0.01)
while not (out / "disk-is-ready").exists():
    time.sleep(0.01)
(out / f"saved-{{rank}}").touch()
sys.exit(128 + noted[0])
"""


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "squall").write_text(TRAINING)
    (tmp_path / "own" / "squall").chmod(0o755)
    return Slurm(tmp_path / "slurm", tasks=3, path=tmp_path / "own")


def out_of(slurm: Slurm, tmp_path: Path) -> Path:
    return tmp_path / "runs" / f"job-{slurm.job}"


def training(slurm: Slurm, tmp_path: Path, *, disk_is_ready: bool = True, restarts: int = 0) -> Job:
    """The template's job, with all ranks at work."""
    out = out_of(slurm, tmp_path)
    job = slurm.start(TEMPLATE, "digits", "lr=0.2", restarts=restarts, cwd=tmp_path)
    job.wait_for(lambda: len(list(out.glob("trains-*"))) == slurm.tasks, "the ranks do not train")
    if disk_is_ready:
        (out / "disk-is-ready").touch()
    return job


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_signalled_saves_and_its_job_comes_again_and_goes_on(
    number: signal.Signals, slurm: Slurm, tmp_path: Path
) -> None:
    with training(slurm, tmp_path) as job:
        job.signal_ranks(number)
        assert job.status() == 0
    assert slurm.requeued == [slurm.job]
    assert f"job {slurm.job} comes again" in job.log
    assert (out_of(slurm, tmp_path) / ".job").exists()  # it waits to come again
    with slurm.start(TEMPLATE, "digits", "lr=0.2", restarts=1, cwd=tmp_path) as again:
        assert again.status() == 0
    assert again.log.count("goes on") == slurm.tasks
    assert not (out_of(slurm, tmp_path) / ".job").exists()
    assert slurm.requeued == [slurm.job]  # finished: not once more
    for called in slurm.called("srun"):
        at = called.index("squall")
        assert called[at:] == ["squall", "train", "digits", "lr=0.2", "--out", f"runs/job-{slurm.job}"]


def test_a_job_that_slurm_ends_waits_for_its_ranks_and_does_not_rise_again(slurm: Slurm, tmp_path: Path) -> None:
    with training(slurm, tmp_path, disk_is_ready=False) as job:
        job.signal_all(signal.SIGTERM)
        job.signal_all(signal.SIGTERM)  # a job that is preempted gets it twice
        assert job.stays(0.5)
        (out_of(slurm, tmp_path) / "disk-is-ready").touch()
        assert job.status() == 143
    assert len(list(out_of(slurm, tmp_path).glob("saved-*"))) == slurm.tasks
    assert slurm.requeued == []
    assert "not if it was cancelled" in job.log


def test_a_run_that_a_person_stopped_does_not_come_again(slurm: Slurm, tmp_path: Path) -> None:
    with training(slurm, tmp_path) as job:
        assert (out_of(slurm, tmp_path) / ".job").read_text() == f"{slurm.job}\n"
        (out_of(slurm, tmp_path) / ".job").unlink()
        job.signal_ranks(signal.SIGTERM)  # the ranks leave by the request with the same status
        assert job.status() == 143
    assert slurm.requeued == []
    assert "squall runs stop" in job.log


@pytest.mark.parametrize("status", [0, 1, 2, 75, 137])
def test_a_run_that_ends_by_itself_ends_its_job_with_its_status(status: int, slurm: Slurm, tmp_path: Path) -> None:
    with slurm.start(TEMPLATE, "fails", str(status), cwd=tmp_path) as job:
        assert job.status() == status
    assert slurm.requeued == []
    assert not out_of(slurm, tmp_path).exists()  # nothing was trained: nothing is left


def test_a_job_that_never_comes_to_save_is_not_queued_for_ever(slurm: Slurm, tmp_path: Path) -> None:
    with training(slurm, tmp_path, restarts=batch.MOST_RESTARTS) as job:
        job.signal_ranks(signal.SIGUSR1)
        assert job.status() == 138
    assert slurm.requeued == []
    assert "not once more" in job.log


def test_a_cluster_that_queues_no_job_again_says_so_with_the_runs_status(slurm: Slurm, tmp_path: Path) -> None:
    (slurm.folder / "disabled").touch()
    with training(slurm, tmp_path) as job:
        job.signal_ranks(signal.SIGUSR1)
        assert job.status() == 138
    assert "presently disabled" in job.log


# -- the text ------------------------------------------------------------------------------------------------------


def test_bash_takes_the_template() -> None:
    done = subprocess.run(["bash", "-n", str(TEMPLATE)], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_template_asks_for_what_going_on_needs() -> None:
    found = flags(TEMPLATE.read_text())
    assert (found["requeue"], found["open-mode"], found["signal"]) == ("", "append", batch.SIGNAL)
    assert "gpus-per-task" not in found  # each rank would see one GPU, and there are more ranks than that on its node
    assert "%t" not in found["output"]
    assert found["ntasks-per-node"] == found["gpus-per-node"]


def test_the_template_runs_the_script_of_submit() -> None:
    text = batch.SCRIPT.format(command='squall train "$@"', live=".job")
    assert TEMPLATE.read_text().endswith(text)
    assert f"most={batch.MOST_RESTARTS} " in TEMPLATE.read_text()
