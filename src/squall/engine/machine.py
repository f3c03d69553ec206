"""What this machine lets a job use: cores, GPUs, memory. Read from the kernel, without torch.

The number of cores that a machine has says little inside a container: the scheduler's affinity mask and the control
group's quota bound what a process gets, and more ranks than that only wait for each other.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def default_processes() -> int:
    """Ranks to start where nobody says how many: one a GPU, or on a CPU machine one a core that is available."""
    if has_gpu():
        import torch

        if torch.cuda.is_available():
            return torch.cuda.device_count()
    return cores()


def has_gpu(devices: Path = Path("/dev")) -> bool:
    """Whether a GPU's device file is there (NVIDIA, AMD, WSL); asking torch would cost its import."""
    return any(any(devices.glob(pattern)) for pattern in ("nvidia[0-9]*", "kfd", "dxg"))


def cores(cgroup: Path = _CGROUP) -> int:
    """Cores that this process may keep busy: its affinity, cut to its control group's quota; at least 1."""
    quota = cpu_quota(cgroup)
    allowed = len(os.sched_getaffinity(0))
    return max(1, min(allowed, math.floor(quota))) if quota else allowed


def cpu_quota(cgroup: Path = _CGROUP) -> float | None:
    """Cores' worth of time that the control group grants; None without a bound. Version 2 first, then version 1."""
    words = _words(cgroup / "cpu.max")
    if not words:
        words = _words(cgroup / "cpu/cpu.cfs_quota_us") + _words(cgroup / "cpu/cpu.cfs_period_us")
    if len(words) != 2 or not words[0].isdigit() or not int(words[1]):
        return None  # "max" or -1: no bound
    return int(words[0]) / int(words[1])


def memory(cgroup: Path = _CGROUP, meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes of memory for this job: the machine's, cut to the control group's limit."""
    total = next(
        int(line.split()[1]) * 1024 for line in meminfo.read_text().splitlines() if line.startswith("MemTotal")
    )
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        words = _words(cgroup / name)
        if words and words[0].isdigit():
            return min(total, int(words[0]))
    return total


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
