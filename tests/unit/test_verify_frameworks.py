"""What frameworks are told under observation, so that a script in its usual form trains as it would with P GPUs."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import pytest
import torch

from squall.verify.observe import frameworks
from squall.verify.observe.recorder import Recorder


class Accelerator:
    """As much of Accelerate's as is watched."""

    def gather(self) -> None: ...
    def gather_for_metrics(self) -> None: ...
    def reduce(self) -> None: ...


@pytest.mark.parametrize(("has", "told"), [(False, "true"), (True, None)])
def test_accelerate_trains_together_on_a_cpu(
    has: bool, told: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "")
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: has)
    module = ModuleType("accelerate.accelerator")
    module.Accelerator = type("Accelerator", (Accelerator,), {})  # type: ignore[attr-defined]
    frameworks._accelerate(module, Recorder(tmp_path, 0, 2, epochs=2, steps=24))
    assert os.environ.get("ACCELERATE_USE_CPU") == told
