"""Trainings on a CUDA device. Run where one is at hand (`pytest -m gpu`); elsewhere conftest leaves them out."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.gpu


def trained(out: Path, *overrides: str) -> dict[str, Any]:
    """The result of a short training of the digits on one GPU, in a process of its own."""
    command = [sys.executable, "-m", "squall", "train", "digits", "--device", "cuda", "--processes", "1", "--quiet"]
    done = subprocess.run(
        [*command, "--out", str(out), "epochs=6", *overrides], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads((out / "result.json").read_text())
    return result


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_two_runs_on_a_gpu_have_the_same_bits(precision: str, tmp_path: Path) -> None:
    formats = [f"compute.precision={precision}", "compute.channels_last=true"]
    first, second = (trained(tmp_path / name, *formats) for name in ("first", "second"))
    assert first["weights_sha256"] == second["weights_sha256"]
    assert first["test_accuracy"] > 0.9
    assert first["ledger"]["complete"]


def test_fused_workers_on_a_gpu_normalise_over_n(tmp_path: Path) -> None:
    alone, fused = (trained(tmp_path / f"fuse{fuse}", f"compute.fuse={fuse}") for fuse in (1, 4))
    assert alone["train_loss"] == pytest.approx(fused["train_loss"], rel=0.2)
    assert fused["test_accuracy"] > 0.9
