"""`squall verify --resume`: killed in mid-epoch and started again, by the corpus's scripts and by Squall's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from squall.verify.examining import examine
from squall.verify.finding import Finding
from squall.verify.stage import Stage
from tests.verify.corpus.index import CASES, FOLDER, Case

CHECKPOINTED = [case for case in CASES if case.args]
WORDS = {
    "checkpoints_a.py": "the optimiser's state is not restored",
    "checkpoints_b.py": "its place in the data is not restored",
    "checkpoints_c.py": "samples, rates, losses and weights equal",
    "checkpoints_d.py": "the schedule is not restored",
}


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """Where all ranks come from."""
    with Stage(["squall.training"]) as one:
        yield one


def resumed(stage: Stage, script: str, *arguments: str) -> Finding:
    verdict = examine(
        script, arguments, processes=(2, 3), checks=["resume"], resumes=True, limit_s=120, steps=24, stage=stage
    )
    assert not verdict.troubles
    return verdict.findings[0]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("case", CHECKPOINTED, ids=lambda case: case.file)
def test_what_a_resume_does_not_restore_is_named(case: Case, stage: Stage) -> None:
    found = resumed(stage, str(FOLDER / case.file), *case.args)
    assert found.outcome == ("ok" if case.right else "FAIL")
    assert found.says.startswith(WORDS[case.file]) or WORDS[case.file] in found.says


@pytest.mark.timeout(180)
def test_squall_goes_on_bit_for_bit_with_another_number_of_processes_too(stage: Stage) -> None:
    found = resumed(stage, "digits", "epochs=2")
    assert found.outcome == "ok"
    assert "also with 3 processes" in found.says


def test_without_a_checkpoint_it_says_what_to_give(stage: Stage) -> None:
    found = resumed(stage, str(FOLDER / "checkpoints_c.py"))
    assert found.outcome == "--"
    assert "{folder}" in found.says
