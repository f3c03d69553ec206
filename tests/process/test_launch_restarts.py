"""A run whose processes are killed, stuck or resized goes on: with small ranks that need no torch, and real deaths."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from squall.cli.processes import RanksFailed, Span
from squall.cli.restarts import Job, run
from squall.run import requests
from squall.run.requests import Request

# a rank that notes each start, "trains" by making a checkpoint, and comes to the harm that the plan has for this start
RANK = """
import json, os, signal, sys, time
from pathlib import Path
from squall.engine.spmd import as_rank
from squall.errors import InputError, RunError

class PeerLostError(RunError):
    peer, purpose, direction = 1, "to exchange partial sums", "for"

def late():
    time.sleep(0.3)  # the wait that the message speaks of
    raise PeerLostError("rank 1 was lost", [("detail", "Timed out waiting 300ms for recv operation to complete")])

def noted(out, rank):
    path = out / f"starts-{rank}"
    return path.read_text().splitlines() if path.exists() else []

def main():
    verb, out, plan = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    starts = out / f"starts-{rank}"
    starts.touch()
    number = len(starts.read_text().splitlines())
    for here in (rank, *(range(size, 4) if rank == size - 1 else ())):  # of those that are not there, too
        with (out / f"starts-{here}").open("a") as file:
            file.write(f"{verb} {size}\\n")
    what = plan[number] if number < len(plan) else "finish"
    if what != "before the first step":
        (out / "records.jsonl").touch()
        if rank == 0:
            step = out / "checkpoints" / f"step-{10 * (number + 1):08}"
            step.mkdir(parents=True)
            (step / "manifest.json").touch()
    if what == "finish":
        return 0
    while not all(len(noted(out, other)) > number for other in range(size)):
        time.sleep(0.005)  # the harm ends the others too: all have noted their start before
    last = rank == size - 1
    if what in ("kill", "before the first step") and last:
        print(f"the last word of start {number}", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP) if rank else late()
    if what == "mistake":
        raise InputError("a mistake")
    if what == "error" and last:
        raise ZeroDivisionError("an error")
    if what == "resize":
        return 75
    if what == "leave":
        return 143
    signal.pause()

sys.exit(as_rank(main))
"""


@pytest.fixture
def follow(script: Callable[[str], str], tmp_path: Path, mark: Callable[[], list[int]]):
    """Runs a plan: what happens at each start. Returns the status and, for rank 0, each start's verb and processes."""
    folder = tmp_path / "run"
    folder.mkdir()
    command = script(RANK)

    def through(*plan: str, processes: int = 2, span: str | None = None, restarts: int = 3) -> tuple[int, list[str]]:
        given = [str(folder), json.dumps(plan)]
        job = Job(
            begin=[command, "train", *given],
            resume=[command, "resume", *given],
            folder=folder,
            threads=1,
            span=Span.parse(span) if span else None,
            restarts=restarts,
        )
        try:
            status = run(job, processes)
        except RanksFailed as failed:
            status = failed.status
        assert mark() == []
        return status, (folder / "starts-0").read_text().splitlines()

    return through


Follow = Callable[..., tuple[int, list[str]]]


def test_a_killed_rank_costs_a_line_and_the_run_goes_on(follow: Follow, capfd: pytest.CaptureFixture[str]) -> None:
    assert follow("kill", "kill", "finish") == (0, ["train 2", "resume 2", "resume 2"])
    lines = capfd.readouterr().err.splitlines()
    died = "squall: rank 1 of 2 was killed by SIGKILL; going on from step"
    assert lines == [
        "the last word of start 0",
        f"{died} 10 with 2 processes (restart 1 of 3)",
        "the last word of start 1",
        f"{died} 20 with 2 processes (restart 2 of 3)",
    ]


def test_a_rank_killed_before_the_first_step_begins_the_run_again(
    follow: Follow, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert follow("before the first step", "finish") == (0, ["train 2", "train 2"])
    assert "going on from step 0 with 2 processes (restart 1 of 3)" in capfd.readouterr().err


def test_a_run_that_keeps_dying_is_given_up_and_says_how_to_go_on(
    follow: Follow, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert follow("kill", "kill", "kill", restarts=2) == (1, ["train 2", "resume 2", "resume 2"])
    err = capfd.readouterr().err
    assert len(re.findall("going on", err)) == 2
    last = err[err.index("(exit 1)") :].splitlines()
    assert last[1:] == [
        "  often        the machine ran out of memory: dmesg says so",
        "  last lines   the last word of start 2",
        f"  log          {tmp_path / 'run' / 'logs' / 'rank-1.log'}",
        "  restarts   2 of 2 used",
        f"checkpoint of step 30 is there: squall resume {tmp_path / 'run'}",
    ]
    logged = (tmp_path / "run" / "logs" / "rank-1.log").read_text().splitlines()
    assert [line for line in logged if not line.startswith("-- ")] == [f"the last word of start {i}" for i in range(3)]


def test_no_restarts_are_made_where_none_are_wanted(follow: Follow) -> None:
    assert follow("kill", restarts=0) == (1, ["train 2"])


def test_within_a_range_processes_become_fewer_down_to_its_end(follow: Follow) -> None:
    assert follow("kill", "kill", "kill", processes=4, span="2:4") == (
        0,
        ["train 4", "resume 3", "resume 2", "resume 2"],
    )


def test_a_stuck_rank_is_replaced_too(follow: Follow, capfd: pytest.CaptureFixture[str]) -> None:
    assert follow("stop", "finish") == (0, ["train 2", "resume 2"])
    assert (
        "squall: rank 1 of 2 is stuck: rank 0 waited 0.3 s for it to exchange partial sums; going on from step 10"
        in capfd.readouterr().err
    )


@pytest.mark.parametrize(("what", "status"), [("error", 1), ("mistake", 2), ("leave", 143)])
def test_errors_and_leaving_are_the_end(what: str, status: int, follow: Follow) -> None:
    assert follow(what) == (status, ["train 2"])


def test_a_resized_run_goes_on_with_the_wanted_number_and_counts_no_restart(
    follow: Follow, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    requests.ask(tmp_path / "run", Request("resize", 3))
    assert follow("resize", "kill", "finish", restarts=1) == (0, ["train 2", "resume 3", "resume 3"])
    assert requests.waiting(tmp_path / "run") is None
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "squall: resized; going on from step 10 with 3 processes"
    assert lines[2].endswith("(restart 1 of 1)")


def test_a_run_that_left_for_a_number_that_nobody_wants_any_more_ends(follow: Follow) -> None:
    assert follow("resize") == (os.EX_TEMPFAIL, ["train 2"])
