"""Cores and memory of a job, from control groups as containers have them."""

import os
from pathlib import Path

import pytest

from squall.engine import machine


def group(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu.max": "garbled"}, None),
    ],
)
def test_quota_of_both_versions_of_control_groups(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    assert machine.cpu_quota(group(tmp_path, files)) == quota


def test_cores_are_the_affinity_cut_to_the_quota_and_never_none(tmp_path: Path) -> None:
    allowed = len(os.sched_getaffinity(0))
    assert machine.cores(tmp_path) == allowed
    assert machine.cores(group(tmp_path, {"cpu.max": "100000 100000"})) == 1
    assert machine.cores(group(tmp_path, {"cpu.max": "20000 100000"})) == 1
    assert machine.cores(group(tmp_path, {"cpu.max": "99900000 100000"})) == allowed


def test_memory_is_cut_to_the_groups_limit(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       16000 kB\nMemFree:        1 kB\n")
    assert machine.memory(tmp_path, meminfo) == 16000 * 1024
    assert machine.memory(group(tmp_path, {"memory.max": "1000000\n"}), meminfo) == 1_000_000
    assert machine.memory(group(tmp_path, {"memory.max": "max\n"}), meminfo) == 16000 * 1024


def test_a_gpu_shows_by_its_device_file(tmp_path: Path) -> None:
    (tmp_path / "nvidiactl").touch()
    assert not machine.has_gpu(tmp_path)
    (tmp_path / "nvidia0").touch()
    assert machine.has_gpu(tmp_path)


def test_by_default_a_cpu_machine_gets_a_process_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "has_gpu", lambda: False)
    assert machine.default_processes() == machine.cores()


def kernel(folder: Path, available_kb: int, groups: str) -> Path:
    return group(folder, {"meminfo": f"MemTotal: 999 kB\nMemAvailable: {available_kb} kB\n", "self/cgroup": groups})


def test_free_memory_is_the_machines_without_control_groups(tmp_path: Path) -> None:
    assert machine.free_memory(tmp_path, kernel(tmp_path, 5000, "0::/\n")) == 5000 * 1024
    assert machine.free_memory() > 0


def test_free_memory_is_cut_to_what_each_control_group_above_has_left(tmp_path: Path) -> None:
    proc = kernel(tmp_path / "proc", 10_000, "0::/job/step\n")
    tree = group(
        tmp_path / "v2",
        {
            "job/memory.max": "3000000\n",
            "job/memory.current": "1000000\n",
            "job/memory.stat": "anon 5\ninactive_file 400000\n",
            "job/step/memory.max": "max\n",
            "job/step/memory.current": "900000\n",
        },
    )
    assert machine.free_memory(tree, proc) == 2_400_000
    group(tree, {"job/step/memory.max": "800000\n"})
    assert machine.free_memory(tree, proc) == 0


def test_free_memory_in_a_container_of_version_1_that_shows_only_its_own_group(tmp_path: Path) -> None:
    proc = kernel(tmp_path / "proc", 10_000, "9:cpu:/\n4:memory:/docker/abc\n0::/\n")
    files = {"limit_in_bytes": "3000000", "usage_in_bytes": "2500000", "stat": "total_inactive_file 100000\n"}
    tree = group(tmp_path / "v1", {f"memory/memory.{name}": text for name, text in files.items()})
    assert machine.free_memory(tree, proc) == 600_000
