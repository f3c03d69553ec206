"""Functions on which optimisers are tried: hard ones of the literature, with their usual beginnings.

Moré, Garbow & Hillstrom 1981 (ACM Transactions on Mathematical Software 7, 17).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Scalar = Callable[[Tensor], Tensor]


def with_gradient(function: Scalar, log: list[float] | None = None) -> Callable[[Tensor, Tensor], float]:
    """A function of torch as `squall.optim.local.Local` wants it; notes the largest element of each gradient."""

    def evaluated(x: Tensor, into: Tensor) -> float:
        leaf = x.detach().clone().requires_grad_()
        value = function(leaf)
        into.copy_(torch.autograd.grad(value, leaf)[0])
        if log is not None:
            log.append(float(into.abs().max()))
        return float(value.detach())

    return evaluated


def quadratic(condition: float, size: int) -> Scalar:
    curvatures = torch.logspace(0, math.log10(condition), size, dtype=torch.float64)
    return lambda x: (curvatures * (x - 1) ** 2).sum() / 2


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def beale(x: Tensor) -> Tensor:
    a, b = x
    return (1.5 - a + a * b) ** 2 + (2.25 - a + a * b**2) ** 2 + (2.625 - a + a * b**3) ** 2


def powell_singular(x: Tensor) -> Tensor:
    a, b, c, d = x.view(-1, 4).T
    return ((a + 10 * b) ** 2 + 5 * (c - d) ** 2 + (b - 2 * c) ** 4 + 10 * (a - d) ** 4).sum()


def wood(x: Tensor) -> Tensor:
    a, b, c, d = x.view(-1, 4).T
    first = 100 * (a**2 - b) ** 2 + (a - 1) ** 2 + (c - 1) ** 2 + 90 * (c**2 - d) ** 2
    return (first + 10.1 * ((b - 1) ** 2 + (d - 1) ** 2) + 19.8 * (b - 1) * (d - 1)).sum()


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


HARD: dict[str, tuple[Scalar, Tensor]] = {
    "Rosenbrock, 2": (rosenbrock, vector(-1.2, 1)),
    "Rosenbrock, 10": (rosenbrock, vector(*[-1.2, 1] * 5)),
    "Beale": (beale, vector(1, 1)),
    "Beale, far": (beale, vector(-1, -1.5)),
    "Powell singular, 4": (powell_singular, vector(3, -1, 0, 1)),
    "Powell singular, 1,000": (powell_singular, vector(*[3, -1, 0, 1] * 250)),
    "Wood, 4": (wood, vector(-3, -1, -3, -1)),
    "Wood, 1,000": (wood, vector(*[-3, -1, -3, -1] * 250)),
    "quadratic, 1,000, condition 1e2": (quadratic(1e2, 1000), vector(*[0] * 1000)),
    "quadratic, 1,000, condition 1e4": (quadratic(1e4, 1000), vector(*[0] * 1000)),
}
