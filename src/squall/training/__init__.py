"""The composition root: a recipe and a task become a run.

Names are imported when they are first used: the command line looks for saved runs (`squall.training.saved`) before it
loads torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from squall.training.parts import compose, model_of
    from squall.training.session import train
    from squall.training.spec import run_spec

_WHERE = {"compose": "parts", "model_of": "parts", "run_spec": "spec", "train": "session"}

__all__ = ["compose", "model_of", "run_spec", "train"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'squall.training' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"squall.training.{_WHERE[name]}"), name)
    globals()[name] = value
    return value
