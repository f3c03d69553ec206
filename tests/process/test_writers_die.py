"""Several ranks save together: a writer that dies, a disk that fails one of them. The job goes on, and all say why."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import squall
from squall.checkpoint import files
from squall.cluster.world import World
from squall.errors import SquallError
from squall.run import ending
from squall.run.leaving import words
from squall.run.steps import Step
from tests.jobs import run_job
from tests.unit.runs import make_data, make_model, summed

Body = Callable[[squall.Run, Step], None]


def loop(out: Path, body: Body, world: World | None) -> str:
    """Twelve steps, saved after every second."""
    run = squall.Run(out, world=world, epochs=4, global_batch_size=8, worker_batch_size=4, checkpoint="2step")
    try:
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        run.setup(model, optimizer)
        for step in run.steps(make_data(24)):
            for batch in step:
                step.backward(summed(model, *batch))
            optimizer.step()
            body(run, step)
        return str(run.finish().values["weights_sha256"])
    finally:
        run.close()


def kill_writer(out: Path, victim: int, world: World) -> str:
    """The writer of one rank is stopped before it sees the order for step 4, and killed two steps later."""

    def body(run: squall.Run, step: Step) -> None:
        if step.index != 4:
            if step.index == 5 and world.rank == victim:
                tell_writer(run, signal.SIGKILL)
            run.saver.finish()
        if step.index == 3 and world.rank == victim:
            tell_writer(run, signal.SIGSTOP)

    return loop(out, body, world)


def tell_writer(run: squall.Run, number: signal.Signals) -> None:
    assert run.saver._background is not None
    assert run.saver._background._process is not None
    os.kill(run.saver._background._process.pid, number)


@pytest.mark.parametrize(("victim", "said"), [(0, ""), (1, " (rank-1)")])
def test_a_writer_that_dies_ends_one_save_and_no_more(victim: int, said: str, tmp_path: Path) -> None:
    """Also where the others have not begun yet, and wait for it: nobody runs into a deadline of minutes."""
    ended = run_job(kill_writer, 2, tmp_path / "run", victim)
    assert set(ended) == {loop(tmp_path / "alone", lambda run, step: None, None)}
    records = [json.loads(line) for line in (tmp_path / "run" / "sessions.jsonl").read_text().splitlines()]
    failed = [(found["step"], found["error"], found["kept"]) for found in records if found["kind"] == "save_failed"]
    assert failed == [(4, f"the process that writes checkpoints died{said}", 2)]
    newest = files.newest(tmp_path / "run" / "checkpoints")
    assert newest is not None
    assert (newest.body["step"], newest.passed_over) == (12, ())
    assert all(path.name.startswith("step-") for path in newest.path.parent.iterdir())


def ask_one(out: Path, world: World) -> tuple[Any, str, str]:
    """Rank 0 cannot write any more; then rank 1, and no other, is asked to leave."""

    def body(run: squall.Run, step: Step) -> None:
        run.saver.finish()
        if step.index == 3 and world.rank == 0:
            (out / "checkpoints").rename(out / "away")
            (out / "checkpoints").touch()
        if step.index == 5 and world.rank == 1:
            os.kill(os.getpid(), signal.SIGUSR1)

    try:
        loop(out, body, world)
    except SystemExit as left:
        return left.code, *(words(left) or ("", ""))
    raise AssertionError


def test_what_could_not_be_saved_is_said_on_all_ranks_and_who_asked(tmp_path: Path) -> None:
    said = run_job(ask_one, 2, tmp_path / "run")
    assert said[0] == said[1]
    status, headline, advice = said[0]
    assert (status, headline) == (138, "stopped by SIGUSR1 after step 7")
    assert advice.startswith("that step could not be saved; from step 2: ")


def no_weights(out: Path, world: World) -> tuple[str, str]:
    """Rank 0's disk takes no weights."""

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    if world.rank == 0:
        ending.weights.save = full  # in a process of its own
    try:
        loop(out, lambda run, step: None, world)
    except SquallError as error:
        return type(error).__name__, error.text()
    raise AssertionError


def no_records(out: Path, world: World) -> tuple[str, str]:
    """Rank 0 cannot open its records."""
    out.mkdir(exist_ok=True)
    (out / "sessions.jsonl").mkdir(exist_ok=True)
    try:
        loop(out, lambda run, step: None, world)
    except SquallError as error:
        return type(error).__name__, error.text()
    raise AssertionError


@pytest.mark.parametrize(
    ("job", "kind", "found"),
    [(no_weights, "RunError", "No space left on device"), (no_records, "InputError", "Is a directory")],
)
def test_what_rank_0s_disk_refuses_is_one_error_on_all_ranks(job: Any, kind: str, found: str, tmp_path: Path) -> None:
    said = run_job(job, 2, tmp_path / "run")
    assert said[0] == said[1]
    assert said[0][0] == kind
    assert found in said[0][1]
