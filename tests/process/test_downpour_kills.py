"""Claim D6 on real Ray: replicas and shards are killed with SIGKILL, or stand still, and the run ends well."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from tests.kills import kill_at_random
from tests.process.downpour_runs import check_ledger, running, squall, write_task
from tests.process.ray_drivers import LOOPBACKS, listening


def train(tmp_path: Path, **values: object) -> list[str]:
    task = write_task(tmp_path / "kills.py", **values)
    return squall("train", str(task), "--out", str(tmp_path / "run"), "--quiet")


def test_a_replica_and_a_shard_are_killed(tmp_path: Path, mark: Callable[[], list[int]]) -> None:
    with running(tmp_path / "run", *train(tmp_path, samples=1200, epochs=2), cwd=tmp_path) as run:
        run.reaches(30)
        pids = run.pids(mark())
        assert set(pids) >= {"coordinator", "replica-0", "replica-1", "shard-0", "shard-1"}
        found = listening(mark())
        assert pids["shard-0"] in {pid for pid, _ in found}
        assert {address for _, address in found} <= set(LOOPBACKS)

        os.kill(pids["replica-0"], signal.SIGKILL)
        before = len(run.records("push"))
        run.comes(lambda: run.changes("restarted"))
        pushes = run.records("push")
        back = run.changes("restarted")[0]["seconds"]
        meanwhile = [p for p in pushes[before:] if p["seconds"] < back]
        assert {p["replica"] for p in meanwhile[2:]} == {
            "replica-1"
        }  # the dead one's last word may have been under way
        assert len(meanwhile) > 5

        run.comes(lambda: len(run.sessions("saved")) > 1)
        os.kill(pids["shard-1"], signal.SIGKILL)
        run.comes(lambda: [c for c in run.changes("restarted") if c["role"] == "shard-1"])
        assert run.ended() == 0, run.said()
        result = check_ledger(run, 600)
    restarted = [c for c in run.changes("restarted") if c["role"] == "shard-1"]
    shards = result["minibatches"]["shards"]
    assert [shard["restarts"] for shard in shards] == [0, 1]
    assert shards[0]["lost"] == 0
    assert shards[1]["lost"] == restarted[0]["lost"]
    assert shards[1]["applied"] + shards[1]["lost"] == 600
    assert result["replicas"]["replica-0"]["pushes"] > 0  # the weights that it came back to were not overwritten:
    assert run.records("push")[-1]["loss"] < run.records("push")[0]["loss"]
    assert mark() == []


def test_a_replica_that_stands_still_is_done_without(tmp_path: Path, mark: Callable[[], list[int]]) -> None:
    command = train(tmp_path, samples=3200, epochs=1, lease="2s", replicas=3)
    with running(tmp_path / "run", *command, cwd=tmp_path) as run:
        run.reaches(20)
        run.comes(lambda: {p["replica"] for p in run.records("push")} == {"replica-0", "replica-1", "replica-2"})
        os.kill(run.pids(mark())["replica-1"], signal.SIGSTOP)
        assert run.ended() == 0, run.said()
        check_ledger(run, 800)
        assert [change["role"] for change in run.changes("silent")] == ["replica-1"]
    assert mark() == []


def test_roles_are_killed_at_random_moments(tmp_path: Path, mark: Callable[[], list[int]]) -> None:
    assert kill_at_random(tmp_path, mark, seed=10, kills=4)  # `make chaos` tries more
