"""`squall verify --resume`: killed in mid-epoch and started again, by the corpus's scripts and by Squall's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from squall.errors import InputError
from squall.verify.examining import examine
from squall.verify.finding import Finding
from squall.verify.stage import Stage
from tests.verify.corpus.index import CASES, FOLDER, Case

EXAMPLES = Path(__file__).parents[2] / "examples"
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


def test_a_script_that_is_told_no_folder_cannot_be_asked(stage: Stage) -> None:
    with pytest.raises(InputError, match="does not know where the checkpoints come") as mistake:
        resumed(stage, str(FOLDER / "checkpoints_c.py"))
    assert "--resume -- --checkpoints {folder}" in str(mistake.value)


def test_a_script_that_writes_no_checkpoint_fails_what_was_asked(stage: Stage) -> None:
    found = resumed(stage, str(EXAMPLES / "find_the_fault.py"), "{folder}")
    assert found.outcome == "FAIL"
    assert found.says == "no checkpoint came into {folder}: it could not be killed after one"
