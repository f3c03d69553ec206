"""Runs of replicas and shards on real Ray whose roles are killed at random moments, each a function of its seed.

python -m tests.kills --seeds 10
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

from squall.engine.leftovers import marked
from tests.process.conftest import MARK
from tests.process.downpour_runs import GONE_S, STARTS_S, check_ledger, running, squall, write_task
from tests.process.ray_drivers import until

ROLES = ("replica-0", "replica-1", "replica-2", "shard-0", "shard-1")


def kill_at_random(folder: Path, mark: Callable[[], list[int]], seed: int, kills: int) -> dict[str, int]:
    """One run; its replicas and shards are killed after numbers of minibatches that the seed chooses.

    Arguments:
        folder: for the run.
        mark: gives its processes.

    Returns:
        How often each role was killed.
    """
    draw = random.Random(seed)
    task = write_task(folder / "kills.py", samples=1600, epochs=2, replicas=3)
    found: dict[str, int] = {}
    with running(folder / "run", *squall("train", str(task), "--out", str(folder / "run")), cwd=folder) as run:
        for moment in sorted(draw.randrange(0, 500) for _ in range(kills)):
            run.reaches(moment)
            role = draw.choice(ROLES)
            until(lambda role=role: run.process.poll() is not None or role in run.pids(mark()), STARTS_S)
            if run.process.poll() is not None:
                break  # the others were done before it was there again
            os.kill(run.pids(mark())[role], signal.SIGKILL)
            found[role] = found.get(role, 0) + 1
        assert run.ended(110) == 0, run.said()
        result = check_ledger(run, 800)
    restarts = sum(shard["restarts"] for shard in result["minibatches"]["shards"])
    assert restarts <= found.get("shard-0", 0) + found.get("shard-1", 0)
    return found


def main() -> None:
    """Kills on and on, and says what held."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--kills", type=int, default=6)
    given = parser.parse_args()
    os.environ[MARK] = value = uuid.uuid4().hex
    for seed in range(given.first, given.first + given.seeds):
        with tempfile.TemporaryDirectory() as folder:
            killed = kill_at_random(Path(folder), lambda: marked(f"{MARK}={value}".encode()), seed, given.kills)
            until(lambda: not set(marked(f"{MARK}={value}".encode())) - {os.getpid()}, GONE_S)
        print(f"seed {seed}: {killed}, the ledger closed and nothing was left", flush=True)


if __name__ == "__main__":
    main()
