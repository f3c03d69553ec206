"""Networks that are spread over processes, with gradients of several batches reduced at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from squall.verify.examining import examine

SCRIPT = Path(__file__).resolve().parents[1] / "verify" / "sharded" / "train.py"


@pytest.mark.parametrize(("arguments", "fails"), [([], []), (["--undivided"], ["accumulation"])])
def test_batches_that_are_held_back_are_part_of_the_update(arguments: list[str], fails: list[str]) -> None:
    verdict = examine(str(SCRIPT), arguments, processes=(2, 3), limit_s=60.0)
    found = {finding.check: finding for finding in verdict.findings}
    assert verdict.troubles == ()
    assert [finding.check for finding in verdict.fails] == fails, verdict.fails
    for check in ("gradient", "loss weighting", "parameters", "evaluation"):
        assert found[check].outcome in ("ok", "note"), found[check]
    assert found["accumulation"].outcome == ("FAIL" if fails else "ok")
