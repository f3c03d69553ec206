"""Scripts that `squall verify` was not made for: none of the right ones is accused, most faults are named."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from squall.verify.examining import examine
from squall.verify.finding import Finding
from squall.verify.stage import Stage
from tests.verify.held_out.index import FOLDER, MISSED, RIGHT, WRONG


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """Where all ranks come from."""
    with Stage(["accelerate", "lightning", "torch.distributed.tensor"]) as one:
        yield one


def failed(file: str, stage: Stage) -> dict[str, Finding]:
    verdict = examine(str(FOLDER / file), processes=(2, 3), limit_s=90, stage=stage)
    assert not [trouble for trouble in verdict.troubles if trouble.fatal]
    assert not [finding for finding in verdict.findings if "could not judge" in finding.says]
    return {finding.check: finding for finding in verdict.fails}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("file", RIGHT)
def test_a_right_script_is_accused_of_nothing(file: str, stage: Stage) -> None:
    assert failed(file, stage) == {}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("file", [file for file in WRONG if file not in MISSED])
def test_a_fault_is_named(file: str, stage: Stage) -> None:
    assert WRONG[file][0] in failed(file, stage)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("file", sorted(MISSED))
def test_what_is_missed_is_said_to_be(file: str, stage: Stage) -> None:
    """Once it is named it comes off the list."""
    assert WRONG[file][0] not in failed(file, stage)
