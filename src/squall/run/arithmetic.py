"""torch's process-wide switches that change arithmetic: set from the spec, given back afterwards."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from squall.run.memory import keep_freed_memory
from squall.run.spec import RunSpec
from squall.version import own_version


@dataclass(frozen=True)
class Settings:
    """What was in force before a run."""

    threads: int
    deterministic: bool
    warn_only: bool
    fill: bool
    matmul_tf32: bool
    cudnn_tf32: bool
    cudnn_benchmark: bool


def enter(spec: RunSpec, device: torch.device) -> Settings:
    """Sets threads, determinism and tf32 as the spec says; returns what was there before.

    `exact` asks for deterministic kernels: an operator that has none raises an error that names it.
    """
    before = Settings(
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
    )
    exact = spec.reduction == "exact"
    if device.type == "cpu":
        torch.set_num_threads(spec.threads)
        keep_freed_memory()
    else:
        if exact:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cuda.matmul.allow_tf32 = spec.precision == "tf32"
        torch.backends.cudnn.allow_tf32 = spec.precision == "tf32"
        torch.backends.cudnn.benchmark = not exact
    if exact:
        _ask_for_deterministic_kernels(True, warn_only=False)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return before


def leave(before: Settings) -> None:
    """Puts the switches back."""
    torch.set_num_threads(before.threads)
    _ask_for_deterministic_kernels(before.deterministic, warn_only=before.warn_only)
    torch.utils.deterministic.fill_uninitialized_memory = before.fill  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.allow_tf32 = before.matmul_tf32
    torch.backends.cudnn.allow_tf32 = before.cudnn_tf32
    torch.backends.cudnn.benchmark = before.cudnn_benchmark


def _ask_for_deterministic_kernels(mode: bool, *, warn_only: bool) -> None:
    """As `torch.use_deterministic_algorithms`, which loads torch's compiler only to tell it: two seconds of a core."""
    if "torch._inductor" in sys.modules:
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)
    else:
        torch.set_deterministic_debug_mode(("warn" if warn_only else "error") if mode else "default")


def versions() -> dict[str, Any]:
    """Versions and the commit of the code, for result.json."""
    return {
        "versions": {
            "squall": own_version(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": version("numpy"),
        },
        "commit": _commit(),
    }


@lru_cache(maxsize=1)
def _commit() -> str | None:
    """The commit of the checkout the package runs from, or of the current folder; None outside a repository."""
    for where in (Path(__file__).parent, Path.cwd()):
        try:
            done = subprocess.run(
                ["git", "-C", str(where), "describe", "--always", "--dirty", "--abbrev=12"],
                capture_output=True,
                text=True,
                timeout=5,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode == 0:
            return done.stdout.strip()
    return None
