"""How a schedule would go on: a copy of it, as it was when it was made, is asked for one rate after another.

What matters is the *horizon*: after how many steps the rate has come to its end. A schedule made for 60 updates and
stepped once an epoch never comes there.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class _Standin(Optimizer):
    """An optimiser with the same numbers in its groups, and nothing to train."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__([{"params": [torch.zeros(1, requires_grad=True)]} for _ in groups], {})
        for mine, group in zip(self.param_groups, groups, strict=True):
            mine.update({key: _own(value, self) for key, value in group.items() if key != "params"})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing."""


def fresh(scheduler: Any) -> Any:
    """A copy of a schedule on an optimiser of its own; None where that cannot be had."""
    try:
        return _copied(scheduler, _Standin(scheduler.optimizer.param_groups))
    except Exception:  # a user's own class
        return None


def _copied(scheduler: Any, standin: _Standin) -> Any:
    made = object.__new__(type(scheduler))
    for key, value in vars(scheduler).items():
        if key == "optimizer":
            made.optimizer = standin
        else:
            setattr(made, key, _own(value, standin))
    return made


def _own(value: Any, standin: _Standin) -> Any:
    """A copy that shares nothing that a step changes."""
    if isinstance(value, LRScheduler):
        return _copied(value, standin)
    if isinstance(value, list):
        return [_own(one, standin) for one in value]
    return value.detach().clone() if isinstance(value, Tensor) else copy.copy(value)


def horizon(scheduler: Any, most: int) -> dict[str, Any]:
    """Where a schedule's rate comes to its end.

    Returns:
        `end`: the steps after which it stays as it is, or after which the schedule ends, or to its lowest rate; None
        where it has none within `most` steps; `smooth`: whether it changes in most steps until then; `first`, `last`:
        the rates at its begin and end.
    """
    nothing = {"end": None, "smooth": False, "first": None, "last": None}
    if scheduler is None or (not hasattr(scheduler, "get_lr") and not hasattr(scheduler, "_schedulers")):
        return nothing
    rates = [_rate(scheduler)]
    ended = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(most):
            try:
                scheduler.step()
            except Exception:  # OneCycleLR says so when it is over
                ended = True
                break
            rates.append(_rate(scheduler))
    top = max(abs(rate) for rate in rates)
    if not top:
        return nothing
    changes = [place + 1 for place in range(len(rates) - 1) if abs(rates[place + 1] - rates[place]) > 1e-9 * top]
    if not changes:
        return nothing
    end = len(rates) - 1 if ended else changes[-1]
    if not ended and end > 0.95 * len(rates):  # goes on for ever: to its lowest point
        end = min(range(len(rates)), key=lambda place: (round(rates[place] / top, 9), place))
        if end in (0, len(rates) - 1):
            return nothing | {"first": rates[0]}
    inside = sum(change <= end for change in changes)
    return {"end": end, "smooth": inside > 0.5 * end, "first": rates[0], "last": rates[end]}


def _rate(scheduler: Any) -> float:
    return float(scheduler.optimizer.param_groups[0]["lr"])
