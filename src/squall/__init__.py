"""Squall trains PyTorch networks on many processes and keeps the accuracy, and the bits, of the one-device recipe.

Three doors, one path: the command line (`squall train TARGET`), `squall.train(task, recipe)`, and your own loop through
`squall.Run`. Names are imported when they are first used, so that `import squall` alone costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from squall import metrics, verify
    from squall.metrics import Loss, gather, mean
    from squall.optim.lr import lr
    from squall.recipe import Recipe
    from squall.run import Result, Run
    from squall.task import Task
    from squall.training import train
    from squall.training.saved import load
    from squall.training.solver import minimize

_WHERE = {
    "Loss": "squall.metrics",
    "Recipe": "squall.recipe",
    "Result": "squall.run",
    "Run": "squall.run",
    "Task": "squall.task",
    "gather": "squall.metrics",
    "load": "squall.training.saved",
    "lr": "squall.optim.lr",
    "mean": "squall.metrics",
    "minimize": "squall.training.solver",
    "train": "squall.training",
}

__all__ = [
    "Loss",
    "Recipe",
    "Result",
    "Run",
    "Task",
    "gather",
    "load",
    "lr",
    "mean",
    "metrics",
    "minimize",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in ("metrics", "verify"):
        return importlib.import_module(f"squall.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module 'squall' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value
