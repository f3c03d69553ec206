"""A training that is observed ends with the bits of one that is not: weights, states, and where its generators are."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from squall.verify.stage import Job, Stage

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "tests" / "verify" / "transparent"
OBSERVED = "squall.verify.observe.rank:main"
PLAIN = "tests.process.plain_mains:plain"


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        with Stage(["accelerate", "lightning", "torch.distributed.tensor", "squall.training"]) as one:
            yield one


@pytest.fixture
def run(stage: Stage, tmp_path: Path) -> Any:
    def go(main: str, script: str) -> tuple[list[dict[str, Any]], Path]:
        """What each rank has left, and the job's folder."""
        folder = tmp_path / ("observed" if main == OBSERVED else "plain")
        job, out = folder / "job", folder / "out"
        job.mkdir(parents=True)
        out.mkdir()
        options: dict[str, Any] = {"script": str(SCRIPTS / script), "arguments": [str(out)]}
        ended = stage.run(Job(main=main, options=options, processes=2, folder=job, limit_s=90.0))
        for rank in ended.ranks:
            assert not rank.failed, rank.last_lines
        return [torch.load(out / f"left-{rank}.pt", weights_only=False) for rank in range(2)], job

    return go


def same(one: Any, other: Any) -> bool:
    """Bit by bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
    if isinstance(one, np.ndarray):
        return bool((one == other).all())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


@pytest.mark.parametrize("script", ["ddp.py", "fsdp2.py", "with_accelerate.py", "with_lightning.py", "with_squall.py"])
def test_no_bit_of_a_training_changes_as_it_is_observed(script: str, run: Any) -> None:
    plain, _ = run(PLAIN, script)
    observed, job = run(OBSERVED, script)
    assert (job / "rank-1.jsonl").stat().st_size > 10_000  # it was observed
    for rank, (one, other) in enumerate(zip(plain, observed, strict=True)):
        assert one.keys() == other.keys()
        assert [name for name in one if not same(one[name], other[name])] == [], f"on rank {rank}"


def test_a_script_finds_itself_as_python_would_run_it(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(SCRIPTS)
    found = []
    for who in ("python", "observed"):
        out = tmp_path / who
        out.mkdir()
        if who == "python":
            subprocess.run([sys.executable, "facts.py", str(out)], check=True, timeout=60)
        else:
            (tmp_path / "job").mkdir()
            options = {"script": "facts.py", "arguments": [str(out)]}
            job = Job(main=OBSERVED, options=options, processes=1, folder=tmp_path / "job", limit_s=60.0)
            assert not stage.run(job).ranks[0].failed
        found.append(json.loads((out / "facts-0.json").read_text().replace(str(out), "OUT")))
    assert found[0] == found[1]
