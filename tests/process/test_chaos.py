"""Ten kills at random moments, of real commands and real processes; `make chaos` does a hundred."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests import chaos


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["digits", "own loop"])
def test_a_run_that_was_killed_is_the_same_training(name: str, tmp_path: Path) -> None:
    job = next(job for job in chaos.jobs(None) if job.name == name)
    job = chaos.Job(job.name, job.first, job.again, most=3, loop=job.loop)  # four on two cores take their time
    chaos.undisturbed(job, tmp_path / "undisturbed")
    draw, kills = random.Random(name), 0
    for number in range(5):
        folder = tmp_path / f"run-{number}"
        tally = chaos.disturb(job, folder, draw, 5 - kills)
        chaos.compare(tmp_path / "undisturbed", folder)
        kills += tally.total
        if kills >= 5:
            break
    assert kills == 5
