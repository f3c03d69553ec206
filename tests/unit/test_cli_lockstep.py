"""Flags of lock-step training, and ranks of a job, where the command line is asked for a run of replicas."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from squall.cli.main import main
from squall.run.folder import STARTED
from tests.fabricated_downpour import Replicated

SHORT = ["epochs=1", "data.train_limit=64", "data.test_limit=16"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def killed() -> str:
    """A run that can be resumed, in simulated time."""
    folder = Replicated(until=30, outcome=None).write(Path("runs/one"))
    (folder / STARTED).write_text(json.dumps({"target": "digits-downpour", "engine": "simulated"}))
    return "one"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--processes", "2"], ["--processes with strategy=downpour", "the engine starts their processes"]),
        (["--profile"], ["--profile with", "a replica writes none"]),
        (["--device", "cuda"], ["--device with", "replicas compute on the CPU"]),
        (["--timeout", "20"], ["--timeout with", "downpour.lease_timeout"]),
        (["--restarts", "0"], ["--restarts with", "the engine starts a role again"]),
        (["--restarts", "1", "--profile"], ["--restarts, --profile with", "leave them away; downpour.replicas=2"]),
        (["--trust-cluster"], ["--trust-cluster without --cluster", "--cluster HOST:PORT"]),
        (["--engine", "simulated", "--cluster", "a:1"], ["--cluster with --engine simulated", "needs no cluster"]),
        (["--engine", "simulated", "--trust-cluster"], ["--trust-cluster with --engine simulated"]),
    ],
)
def test_a_flag_that_would_be_ignored_is_refused(
    given: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = refused(capsys, "train", "digits-downpour", *given)
    assert [word for word in words if word not in found] == []
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ("--processes=2", "--processes with"),
        ("--device=cuda", "--device with"),
        ("--timeout=20", "--timeout with"),
        ("--restarts=0", "--restarts with"),
        ("--other-arithmetic", "--other-arithmetic with"),
        ("--cluster=a:1", "--cluster with --engine simulated"),
        ("--trust-cluster", "--trust-cluster with --engine simulated"),
    ],
)
def test_resume_refuses_them_too(given: str, word: str, killed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert word in refused(capsys, "resume", killed, given)


def test_the_device_that_replicas_compute_on_may_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits-downpour", "--engine", "simulated", "--device", "cpu", "--quiet", *SHORT]) == 0
    assert "weights sha256" in capsys.readouterr().out


def test_lock_step_training_has_no_cluster_to_trust(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--trust-cluster with strategy=sync" in refused(capsys, "train", "digits", "--trust-cluster")


@pytest.mark.parametrize("verb", ["train", "resume"])
def test_ranks_of_a_job_do_not_each_train_a_whole_run(
    verb: str, killed: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    found = refused(capsys, verb, "digits-downpour" if verb == "train" else killed)
    assert "strategy=downpour on ranks of torchrun or SLURM" in found
    assert "one of 2: each would train the whole run" in found
    assert "start it once, with downpour.replicas=2" in found
    assert [path.name for path in Path("runs").iterdir()] == ["one"]
