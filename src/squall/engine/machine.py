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


def free_memory(cgroup: Path = _CGROUP, proc: Path = Path("/proc")) -> int:
    """Bytes that this process can still take without another being killed for it, as far as the kernel can say.

    The machine's, cut to what is left to its control group and to each group above it; what caches of files hold there
    counts as free.
    """
    known = dict(line.split(":", 1) for line in _lines(proc / "meminfo") if ":" in line)
    left = [int(known["MemAvailable"].split()[0]) * 1024]
    for line in _lines(proc / "self/cgroup"):
        number, controllers, path = line.split(":", 2)
        if number == "0":
            names, top = ("memory.max", "memory.current", "inactive_file"), cgroup
        elif "memory" in controllers.split(","):
            names, top = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"), cgroup / "memory"
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        left += [_left(top.joinpath(*parts[:depth]), *names) for depth in range(len(parts) + 1)]
    return min(left)


def _left(group: Path, limit: str, usage: str, cached: str) -> int:
    """What one control group's bound leaves; without a bound, more than any machine has."""
    bound, used = _words(group / limit), _words(group / usage)
    if not (bound and used and bound[0].isdigit()):
        return 1 << 63
    statistics = dict(line.split() for line in _lines(group / "memory.stat"))
    return max(int(bound[0]) - int(used[0]) + int(statistics.get(cached, 0)), 0)


def memory_kills(cgroup: Path = _CGROUP, proc: Path = Path("/proc")) -> tuple[int | None, int | None]:
    """How many processes the kernel has killed so far for want of memory: in this job's control group, on the machine.

    None where it does not say. Version 2 counts in memory.events, version 1 in memory.oom_control.
    """
    own = None
    for line in _lines(proc / "self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and own is None:
            own = _kills(cgroup / path.strip("/") / "memory.events", cgroup / "memory.events")
        elif "memory" in controllers.split(","):
            folder = cgroup / "memory"
            own = _kills(folder / path.strip("/") / "memory.oom_control", folder / "memory.oom_control")
    return own, _kills(proc / "vmstat")


def killed_for_memory(before: tuple[int | None, int | None], after: tuple[int | None, int | None]) -> str:
    """What `memory_kills` before and after a process was killed say of the reason; nothing where they prove nothing."""
    for place, was, now in zip(("its control group", "this machine"), before, after, strict=True):
        if was is not None and now is not None:
            return f"the kernel killed it: {place} is out of memory" if now > was else ""
    return ""


def _kills(*paths: Path) -> int | None:
    for path in paths:
        for line in _lines(path):
            name, _, number = line.partition(" ")
            if name == "oom_kill" and number.strip().isdigit():
                return int(number)
    return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
