"""`squall runs resize RUN --replicas N` and `stop` of batch optimisation on real Ray; then `squall resume`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from squall.cli import states
from tests.process.downpour_runs import Training, running, squall, write_task
from tests.process.test_downpour_resized import asked

BUDGET = 24
RECIPE = (
    "strategy=sandblaster",
    "sandblaster.replicas=2",
    "sandblaster.shards=2",
    "sandblaster.tolerance_gradient=0",
    f"epochs={BUDGET}",
    "checkpoint.every=3step",
)


@pytest.mark.timeout(180)
def test_a_run_that_is_resized_stopped_and_resumed_comes_to_the_weights_of_one_that_is_not(
    tmp_path: Path, mark: Callable[[], list[int]]
) -> None:
    folder, slow = tmp_path / "runs" / "one", tmp_path / "slow"
    slow.touch()
    pause = f"    time.sleep(0.04 if os.path.exists({str(slow)!r}) else 0)"  # it does not end before it is asked
    task = str(write_task(tmp_path / "task.py", samples=200, pause=0.0, loss=pause, more=", test=Pairs()"))
    with running(folder, *squall("train", task, *RECIPE, "--out", str(folder), "--quiet"), cwd=tmp_path) as run:
        run.comes(lambda: len(run.records("epoch")) >= 2)
        wrong = asked(tmp_path, "resize", "one", "--processes", "3")
        assert wrong.returncode == 2
        assert "squall runs resize one --replicas 3" in wrong.stderr
        more = asked(tmp_path, "resize", "one", "--replicas", "3")
        assert more.stdout.startswith("one goes on with 3 replicas, at iteration"), more.stderr
        run.comes(lambda: joined(run) == {"replica-0", "replica-1", "replica-2"})
        assert states.look(folder).processes == 3
        stopped = asked(tmp_path, "stop", "one", "--json")
        assert run.ended() == 143, run.said()
    found = json.loads(stopped.stdout)
    assert (found["state"], found["processes"], found["shards"], found["resumable"]) == ("stopped", 3, 2, True)
    done = found["step"]
    assert 2 <= done == found["checkpoint"] < found["evaluations"] < found["budget"] == BUDGET
    shown = asked(tmp_path, "show", "one").stdout
    assert f"iteration {done}, {found['evaluations']} of {BUDGET} evaluations" in shown
    assert mark() == []

    slow.unlink()
    with running(folder, *squall("resume", "one", "--quiet"), cwd=tmp_path) as again:
        assert again.ended() == 0, again.said()
    assert [session["start_step"] for session in again.sessions("session")] == [0, done]
    result, epochs = again.result(), again.records("epoch")
    assert (result["outcome"], result["evaluations"]) == ("finished", BUDGET)
    assert [epoch["epoch"] for epoch in epochs] == list(range(result["iterations"]))

    other = tmp_path / "runs" / "other"
    plain = squall("train", task, *RECIPE, "--engine", "simulated", "--out", str(other), "--quiet")
    subprocess.run(plain, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL, timeout=60)
    expected = json.loads((other / "result.json").read_text())
    assert result["weights_sha256"] == expected["weights_sha256"]
    assert mark() == []


def joined(run: Training) -> set[str]:
    """The replicas that have come."""
    return {change["role"] for change in run.changes("joined")}
