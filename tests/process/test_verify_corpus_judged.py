"""Every script of the corpus is run under `squall verify`: each fault is found and named, and no right script accused.

The corpus was written before the checks (`tests/verify/corpus`). All ranks come from one stage, which has made the slow
imports once. Most are run with 2 and 3 processes; those whose fault is a matter of repeating also once more.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from squall.verify.catalogue import NAMES
from squall.verify.examining import examine
from squall.verify.stage import Stage
from tests.verify.corpus.index import CASES, FOLDER, Case

TWICE = {"own_order_a.py", "own_order_b.py", "squall_loop_a.py", "squall_loop_b.py", "digits_mlp_b.py"}
"""Scripts that are also run a second time with the same number of processes."""

JUDGED = [case for case in CASES if "resume" not in case.faults]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """Where all ranks come from."""
    with Stage(["accelerate", "lightning", "torch.distributed.tensor", "squall.training"]) as one:
        yield one


@pytest.mark.timeout(120)
@pytest.mark.parametrize("case", JUDGED, ids=lambda case: case.file)
def test_a_script_is_judged_as_what_it_is(case: Case, stage: Stage) -> None:
    checks = [name for name in NAMES if name != "determinism" or case.file in TWICE]
    verdict = examine(str(FOLDER / case.file), processes=(2, 3), checks=checks, limit_s=60, stage=stage)
    assert not verdict.troubles
    found = {finding.check: finding for finding in verdict.findings}
    failed = {name for name, finding in found.items() if finding.outcome == "FAIL"}
    assert failed >= set(case.faults), "a fault was not found"
    assert failed <= {*case.faults, *case.also}, f"accused wrongly: {[found[name].says for name in failed]}"
    for finding in verdict.fails:  # the whole story, and the line of the user's own file
        assert finding.expected
        assert finding.found
        assert finding.effect
        assert finding.change
        assert finding.place is not None
        assert finding.place.path.endswith(case.file)


def test_what_depends_on_the_number_of_processes_is_noted(stage: Stage) -> None:
    for file in ("bars_cnn_a.py", "ratings_sum_c.py", "sensors_a.py"):
        case = next(one for one in CASES if one.file == file)
        verdict = examine(str(FOLDER / file), processes=(2, 3), limit_s=60, stage=stage)
        assert {finding.check for finding in verdict.findings if finding.outcome == "note"} >= set(case.notes)
