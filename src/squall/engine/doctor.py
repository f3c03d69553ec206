"""Says what this machine is and whether distributed training works on it: one finding a line, to paste into an issue.

Nothing is assumed that can be tried: the network check starts two real ranks by the launcher and adds numbers between
them over Gloo, which is what a run does first.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from squall import units
from squall.engine import machine
from squall.engine.spmd import as_rank, run_ranks

Status = Literal["ok", "warn", "fail"]

_EXTRAS = (("tensorboard", "report", "TensorBoard events"), ("PIL", "images", "images other than JPEG"))
_WORDS = 1_000_000
_LEAST_SHM = 64 * 2**20
_GAIN = 1.2  # from when on another format is worth a word


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Arguments:
        name: what.
        status: ``ok``; ``warn``: works, but slower or with less; ``fail``: runs will fail.
        text: what was found.
        todo: what to do about it, or nothing.
    """

    name: str
    status: Status
    text: str
    todo: str = ""


def examine(*, network: bool = True) -> list[Finding]:
    """Looks at everything; a check that breaks is itself a finding.

    Arguments:
        network: start two ranks and let them add numbers (some seconds).
    """
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("squall", _versions),
        ("processor", _processor),
        ("threads", _threads),
        ("gpu", _gpu),
        ("formats", _formats),
        ("memory", _memory),
        ("shared memory", _shared_memory),
        ("open files", _open_files),
    ]
    if network:
        checks.append(("network", _network))
    return [_tried(name, check) for name, check in checks] + [_extra(*extra) for extra in _EXTRAS]


def render(findings: list[Finding]) -> str:
    """The findings as aligned lines, what to do below each, and a verdict."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.name.ljust(width)}   {finding.status.ljust(4)}   {finding.text}")
        if finding.todo:
            lines.append(f"{' ' * width}          to do: {finding.todo}")
    bad = [finding.name for finding in findings if finding.status == "fail"]
    lines += ["", f"{', '.join(bad)}: runs will fail until this is mended" if bad else "this machine can train"]
    return "\n".join(lines)


def to_json(findings: list[Finding]) -> str:
    """The findings as one JSON list."""
    return json.dumps([asdict(finding) for finding in findings])


def _tried(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # a doctor that dies of a symptom is no use
        return Finding(name, "fail", f"the check raised {type(error).__name__}: {error}", "report this line")


def _versions() -> Finding:
    import torch

    try:
        own = importlib.metadata.version("squall-train")
    except importlib.metadata.PackageNotFoundError:
        own = "not installed"
    text = f"{own}, torch {torch.__version__}, Python {platform.python_version()}, {platform.system()}"
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        return Finding("squall", "fail", f"{text}; this build of torch has no Gloo", "install torch from PyPI")
    return Finding("squall", "ok", text)


def _processor() -> Finding:
    import torch

    cores = machine.cores()
    text = f"{cores} of {os.cpu_count()} cores for this process, {torch.backends.cpu.get_cpu_capability().lower()}"
    quota = machine.cpu_quota()
    if quota is not None and quota < 1:
        return Finding("processor", "warn", f"{text}; quota of {quota:g} cores", "grant the container a whole core")
    return Finding("processor", "ok", text)


def _threads() -> Finding:
    import torch

    text = f"torch would use {torch.get_num_threads()}; a run uses what its recipe says, 1 a process by default"
    set_by = [f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ]
    return Finding("threads", "ok", f"{text} (overrides {', '.join(set_by)})" if set_by else text)


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        kinds = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
        if not torch.distributed.is_nccl_available():
            return Finding("gpu", "fail", f"{kinds}, but this build of torch has no NCCL", "install torch from PyPI")
        return Finding("gpu", "ok", kinds)
    if machine.has_gpu():
        return Finding(
            "gpu", "warn", "a device file, but torch sees no GPU", "install a CUDA build of torch, or a driver"
        )
    return Finding("gpu", "ok", "none: runs on the CPU, one process a core")


def _formats() -> Finding:
    import torch

    from squall.engine import formats

    speeds = formats.speeds(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    best = max(speeds, key=lambda each: speeds[each])
    text = ", ".join(f"{each.name} {speed:.1f}x" for each, speed in speeds.items() if each is not formats.PLAIN)
    text = f"a convolutional step against plain float32: {text}"
    if speeds[best] < _GAIN:
        return Finding("formats", "ok", text)
    return Finding("formats", "ok", text, f"squall train ... {best.fields}   (where accuracy allows it)")


def _memory() -> Finding:
    return Finding("memory", "ok", f"{units.megabytes(machine.memory())} for this job")


def _shared_memory() -> Finding:
    found = os.statvfs("/dev/shm")
    free = found.f_bavail * found.f_frsize
    text = f"/dev/shm has {units.megabytes(free)} free: loader processes pass batches through it"
    if free < _LEAST_SHM:
        return Finding("shared memory", "warn", text, "docker run --shm-size=1g, or data.num_workers=0")
    return Finding("shared memory", "ok", text)


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{soft:,} a process" if soft != resource.RLIM_INFINITY else "no bound"
    if soft != resource.RLIM_INFINITY and soft < 256:
        return Finding("open files", "warn", text, f"ulimit -n {min(hard, 4096) if hard > 0 else 4096}")
    return Finding("open files", "ok", text)


def _network() -> Finding:
    fd = os.memfd_create("squall-doctor", os.MFD_CLOEXEC)
    try:
        start = time.monotonic()
        path = f"/proc/{os.getpid()}/fd/{fd}"
        outcome = run_ranks(["-m", "squall.engine.doctor", path], 2, threads=1)
        if outcome.status:
            return Finding(
                "network", "fail", f"two ranks on loopback: {outcome.message}", "see whether the interface lo is up"
            )
        said = json.loads(Path(path).read_text())
    finally:
        os.close(fd)
    rate = units.megabytes(4 * _WORDS / said["seconds"])
    text = f"2 ranks over Gloo on loopback: started in {time.monotonic() - start:.1f} s, all-reduce {rate}/s"
    if not said["right"]:
        return Finding("network", "fail", f"{text}; the sum is wrong", "report this line")
    return Finding("network", "ok", text)


def _extra(module: str, extra: str, what: str) -> Finding:
    if importlib.util.find_spec(module):
        return Finding(f"extra {extra}", "ok", f"{what}: installed")
    return Finding(f"extra {extra}", "ok", f"{what}: not installed", f"pip install 'squall-train[{extra}]'")


def _rank(path: str) -> int:
    """What each of the two ranks does: a message through the store, then a sum that both must know."""
    import torch

    from squall.cluster.world import join

    world = join("cpu", timeout_s=60)
    if world.group is None:
        raise RuntimeError("a rank of the network check found itself alone")
    if world.rank == 0:
        world.put("greeting", "hello")
    greeted = world.get("greeting") == "hello"
    seconds = []
    for _ in range(3):
        values = torch.full((_WORDS,), float(world.rank + 1))
        start = time.perf_counter()
        world.group.allreduce([values]).wait()
        seconds.append(time.perf_counter() - start)
    right = greeted and bool((values == 3).all())
    if world.rank == 0:
        Path(path).write_text(json.dumps({"seconds": min(seconds), "right": right}))
    world.close()
    return 0


if __name__ == "__main__":
    sys.exit(as_rank(lambda: _rank(sys.argv[1])))
