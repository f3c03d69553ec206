"""One run of lock-step training: steps, reduction, evaluation, ledger, records.

Names are imported when they are first used: the command line looks at run folders (`squall.run.folder`) before torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from squall.run.evaluate import PerSample
    from squall.run.result import Result, mean_and_std, median_of_last
    from squall.run.run import Run
    from squall.run.spec import RunSpec
    from squall.run.steps import Step

_WHERE = {
    "PerSample": "evaluate",
    "Result": "result",
    "Run": "run",
    "RunSpec": "spec",
    "Step": "steps",
    "mean_and_std": "result",
    "median_of_last": "result",
}

__all__ = ["PerSample", "Result", "Run", "RunSpec", "Step", "mean_and_std", "median_of_last"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'squall.run' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"squall.run.{_WHERE[name]}"), name)
    globals()[name] = value
    return value
