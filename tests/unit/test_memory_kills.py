"""What the kernel says of processes that it killed for want of memory."""

from pathlib import Path

import pytest

from squall.engine.machine import killed_for_memory, memory_kills

V2 = "low 0\nhigh 0\nmax 14\noom 2\noom_kill {}\noom_group_kill 0\n"
V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"


def written(folder: Path, files: dict[str, str]) -> tuple[Path, Path]:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "cgroup", folder / "proc"


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, (None, None)),
        ({"proc/vmstat": "nr_free_pages 1\noom_kill 7\n"}, (None, 7)),
        ({"proc/self/cgroup": "0::/a/b\n", "cgroup/a/b/memory.events": V2.format(3)}, (3, None)),
        ({"proc/self/cgroup": "0::/a/b\n", "cgroup/memory.events": V2.format(4)}, (4, None)),  # a container's own view
        (
            {
                "proc/self/cgroup": "5:devices:/\n4:cpu,memory:/job\n0::/\n",
                "cgroup/memory/job/memory.oom_control": V1.format(5),
            },
            (5, None),
        ),
        ({"proc/self/cgroup": "garbled\n", "proc/vmstat": "oom_kill many\n"}, (None, None)),
    ],
)
def test_both_versions_of_control_groups_are_read(
    tmp_path: Path, files: dict[str, str], found: tuple[int | None, int | None]
) -> None:
    assert memory_kills(*written(tmp_path, files)) == found


def test_only_a_proof_is_said() -> None:
    assert "its control group" in killed_for_memory((1, 5), (2, 6))
    assert killed_for_memory((1, 5), (1, 6)) == ""  # of another group
    assert "this machine" in killed_for_memory((None, 5), (None, 6))
    assert killed_for_memory((None, None), (None, None)) == ""
    assert killed_for_memory((None, 5), (None, 5)) == ""
