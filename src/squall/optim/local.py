"""A function of one vector in this process, as `squall.optim.lbfgs` minimises it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import torch

from squall.optim.algebra import Command, Matrix, Vectors
from squall.optim.lbfgs import TRIAL, TRIAL_GRADIENT, X, names

T = TypeVar("T")

Function = Callable[[torch.Tensor, torch.Tensor], float]
"""(x, into) -> the value at x, its gradient written to `into`; both (size,)."""


class Local:
    """A problem whose vectors are here.

    Arguments:
        function: value and gradient.
        start: (size,), float32 or float64.
        history: pairs that are kept.
    """

    def __init__(self, function: Function, start: torch.Tensor, history: int) -> None:
        self._function = function
        self._vectors = Vectors(names(history), len(start), start.dtype, start.device)
        self._vectors[TRIAL].copy_(start)

    async def do(self, *commands: Command) -> list[Matrix]:
        """As of `squall.optim.algebra.Space`."""
        return self._vectors.do(*commands)

    async def evaluate(self) -> float:
        """As of `squall.optim.lbfgs.Problem`."""
        return self._function(self._vectors[TRIAL], self._vectors[TRIAL_GRADIENT])

    @property
    def x(self) -> torch.Tensor:
        """Where it is; (size,)."""
        return self._vectors[X]


def finished(coroutine: Coroutine[Any, Any, T]) -> T:
    """The value of a coroutine that waits for nothing, as one over `Local` does."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    coroutine.close()
    raise RuntimeError("a coroutine that should wait for nothing did")
