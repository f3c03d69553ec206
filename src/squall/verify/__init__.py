"""Proof that a distributed training is right: scripts that know nothing of Squall are run, observed and checked.

    script -> stage (ranks) -> observe (a trace a rank) -> checks -> Verdict -> text, page, JSON, JUnit

In a project's own tests::

    from squall import verify

    def test_the_training_is_right():
        verify.assert_right("train.py", processes=(2, 4))

Names are imported when they are first used, and what loads torch only when a script is run.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from squall.verify.catalogue import CHECKS, CheckInfo
    from squall.verify.examining import examine
    from squall.verify.finding import Finding, Place, Trouble, Verdict
    from squall.verify.helper import assert_right
    from squall.verify.values import to_json

_WHERE = {
    "CHECKS": "catalogue",
    "examine": "examining",
    "CheckInfo": "catalogue",
    "Finding": "finding",
    "Place": "finding",
    "Trouble": "finding",
    "Verdict": "finding",
    "assert_right": "helper",
    "to_json": "values",
}

__all__ = ["CHECKS", "CheckInfo", "Finding", "Place", "Trouble", "Verdict", "assert_right", "examine", "to_json"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'squall.verify' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"squall.verify.{_WHERE[name]}"), name)
    globals()[name] = value
    return value
