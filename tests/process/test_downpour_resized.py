"""`squall runs resize RUN --replicas N` and `stop` of runs of replicas and shards on real Ray; and what they use."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from squall.cli import states
from tests.process.downpour_runs import Training, running, squall, write_task


def asked(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`squall runs ...` of the run; its answer."""
    return subprocess.run(
        squall("runs", *arguments), cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )


def test_replicas_join_and_leave_while_it_runs(tmp_path: Path, mark: Callable[[], list[int]]) -> None:
    task = write_task(tmp_path / "resized.py", samples=400, epochs=1000)
    folder = tmp_path / "runs" / "one"
    with running(folder, *squall("train", str(task), "--out", str(folder), "--quiet"), cwd=tmp_path) as run:
        run.reaches(20)
        wrong = asked(tmp_path, "resize", "one", "--processes", "3")
        assert wrong.returncode == 2
        assert "squall runs resize one --replicas 3" in wrong.stderr
        assert asked(tmp_path, "resize", "one").returncode == 2

        assert asked(tmp_path, "resize", "one", "--replicas", "2").stdout.startswith("one has 2 replicas already")
        more = asked(tmp_path, "resize", "one", "--replicas", "4")
        assert more.stdout.startswith("one goes on with 4 replicas, at minibatch"), more.stderr
        run.comes(lambda: {p["replica"] for p in run.records("push")} == {f"replica-{index}" for index in range(4)})
        assert states.look(folder).processes == 4

        fewer = asked(tmp_path, "resize", "one", "--replicas", "1")
        assert fewer.stdout.startswith("one goes on with 1 replica, at minibatch"), fewer.stderr
        run.comes(lambda: len(run.changes("left")) == 3)
        last = run.records("push")[-1]["settled"]
        run.reaches(last + 10)
        assert {p["replica"] for p in run.records("push") if p["settled"] > last} == {"replica-0"}
        run.comes(lambda: set(run.pids(mark())) == {"coordinator", "replica-0", "shard-0", "shard-1"})

        again = asked(tmp_path, "resize", "one", "--replicas", "2")  # under a name that was used before
        assert again.returncode == 0, again.stderr
        back = run.records("push")[-1]["settled"]
        run.comes(
            lambda: {p["replica"] for p in run.records("push") if p["settled"] > back} == {"replica-0", "replica-1"}
        )

        stopped = asked(tmp_path, "stop", "one")
        assert "one stopped at minibatch" in stopped.stdout, stopped.stderr
        assert run.ended() == 143
    refused = asked(tmp_path, "resize", "one", "--replicas", "3")
    assert refused.returncode == 2
    assert "one is not running" in refused.stderr
    shown = asked(tmp_path, "show", "one").stdout
    assert "stopped" in shown
    assert [(r["replicas"], r["before"]) for r in run.sessions("resized")] == [(4, 2), (1, 4), (2, 1)]
    assert mark() == []


def test_a_run_uses_no_more_of_anything_as_it_goes_on(tmp_path: Path, mark: Callable[[], list[int]]) -> None:
    task = write_task(tmp_path / "long.py", samples=400, epochs=1000, pause=0.0, every="1000000step")
    with running(
        tmp_path / "run", *squall("train", str(task), "--out", str(tmp_path / "run"), "--quiet"), cwd=tmp_path
    ) as run:
        run.reaches(500)
        before, at, end = used(run, mark()), run.settled(), time.monotonic() + 20
        run.comes(lambda: time.monotonic() > end)
        after, pushes = used(run, mark()), run.settled() - at
        run.process.terminate()
        run.ended()
    for role, (descriptors, threads, memory) in before.items():
        assert after[role][0] <= descriptors + 2, role
        assert after[role][1] <= threads + 2, role
        assert (after[role][2] - memory) / pushes < 2e3, role  # bytes for each push; a vector has 1,600
    assert pushes > 1000


def used(run: Training, marked: list[int]) -> dict[str, tuple[int, int, int]]:
    """Descriptors, threads and resident bytes of each role's process."""
    found = {}
    for role, pid in run.pids(marked).items():
        status = Path(f"/proc/{pid}/status").read_text()
        lines = dict(line.split(":", 1) for line in status.splitlines())
        memory = int(lines["RssAnon"].split()[0]) * 1024
        found[role] = len(os.listdir(f"/proc/{pid}/fd")), int(lines["Threads"]), memory
    return found
