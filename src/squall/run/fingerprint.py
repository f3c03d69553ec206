"""The arithmetic's fingerprint: everything besides the recipe's mathematics that changes bits.

Measured with torch 2.13 on one x86-64 machine: the number of threads changes the gradients of 31 of 44 combinations of
net, precision and memory format, the instruction set those of 42 of 44. Equal
weights are promised for equal fingerprints, and ranks that differ refuse the exact reduction.
"""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import torch

from squall.cluster.world import World
from squall.errors import RunError
from squall.run.collect import differing, say
from squall.run.spec import RunSpec


def fingerprint(spec: RunSpec, device: torch.device) -> dict[str, Any]:
    """The numbers and names that fix a run's bits, on this process."""
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "instruction_set": torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else "",
        "matrix_units": _matrix_units() if device.type == "cpu" else "",
        "machine": platform.machine(),
        "threads": torch.get_num_threads() if device.type == "cpu" else 0,
        "precision": spec.precision,
        "fuse": spec.fuse,
        "channels_last": spec.channels_last,
        "compile": spec.compile,
    }


def digest(values: dict[str, Any]) -> str:
    """A short hash of a fingerprint, 12 hex digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def agree(world: World, mine: dict[str, Any], exact: bool) -> None:
    """Compares the fingerprints of all ranks.

    Raises:
        RunError: ranks differ and the reduction is exact; names the rank and the fields.
    """
    if world.size == 1 or not exact:
        return
    others = differing(world, json.dumps(mine))
    if others:
        first, other = (json.loads(say(world, json.dumps(mine), rank)) for rank in (0, others[0]))
        fields = [
            (key, f"{first[key]} on rank 0, {other.get(key)} on rank {others[0]}")
            for key in first
            if first[key] != other.get(key)
        ]
        raise RunError(
            f"rank {others[0]} computes with another arithmetic than rank 0",
            [*fields, ("rule", "equal bits need equal arithmetic on all ranks")],
            "reduction=fast accepts unequal ranks",
        )


def _matrix_units() -> str:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return ""
    return " ".join(sorted({flag for flag in flags if flag.startswith("amx_") or flag == "avx512_bf16"}))
