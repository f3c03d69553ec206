"""`squall.minimize`: the batch optimiser over a function of the user's own, without recipe or data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import torch

from squall.errors import InputError
from squall.optim.lbfgs import LbfgsSpec, Outcome, State, minimise
from squall.optim.linesearch import SEARCHES, SearchSpec
from squall.optim.local import Local, finished

Tensors = TypeVar("Tensors", torch.Tensor, Sequence[torch.Tensor], Mapping[str, torch.Tensor])


@dataclass(frozen=True)
class Iteration:
    """Where a minimisation is.

    Attributes:
        number: of the iteration, from 1.
        evaluations: of value and gradient so far.
        value: of the function.
        gradient_norm: 2-norm.
    """

    number: int
    evaluations: int
    value: float
    gradient_norm: float


@dataclass(frozen=True)
class Minimum(Generic[Tensors]):
    """How a minimisation ended.

    Attributes:
        x: the point, as `x0` was given.
        value: of the function there.
        gradient_norm: 2-norm, over all tensors.
        iterations, evaluations: how many it took.
        outcome: "converged", "no descent", "budget spent" or "not finite".
        why: the test that was met.
        advice: what may help; "" where nothing is amiss.
    """

    x: Tensors
    value: float
    gradient_norm: float
    iterations: int
    evaluations: int
    outcome: Outcome
    why: str
    advice: str

    @property
    def converged(self) -> bool:
        """Whether a tolerance was met."""
        return self.outcome == "converged"


def minimize(
    objective: Callable[[Tensors], torch.Tensor],
    x0: Tensors,
    *,
    history: int = 10,
    line_search: Literal["strong_wolfe", "armijo"] = "strong_wolfe",
    tolerance_gradient: float = 1e-5,
    tolerance_step: float = 0.0,
    tolerance_value: float = 0.0,
    max_iterations: int | None = 1000,
    max_evaluations: int | None = None,
    noise: float | None = None,
    callback: Callable[[Iteration], None] | None = None,
) -> Minimum[Tensors]:
    """Minimises a differentiable function by L-BFGS.

    Arguments:
        objective: gives a scalar tensor; differentiated by autograd. It must be a function of x alone: no random
            numbers, no sample of the data that changes from call to call.
        x0: where it begins: a tensor, a list of tensors, or tensors by name; all float32, or all float64. Left alone.
        history: pairs of steps and changes of gradient that are kept; memory is 2 * history + 5 vectors.
        line_search: "strong_wolfe" (Moré & Thuente) or "armijo" (back-tracking, pairs damped).
        tolerance_gradient: converged where the gradient's 2-norm is not above it.
        tolerance_step: converged where a step is not longer than this share of x (at least 1).
        tolerance_value: converged where a step takes off no more than this share of the value (at least 1).
        max_iterations, max_evaluations: the budget; None: no end.
        noise: relative error of a value, which the line search forgives; by default ten units of rounding.
        callback: called after each iteration.

    Raises:
        InputError: x0 or what the objective returns is nothing to be minimised; an option out of its range.

    Example:
        >>> import torch, squall
        >>> found = squall.minimize(lambda x: ((x - 3) ** 2).sum(), torch.zeros(2))
        >>> found.x, found.outcome
        (tensor([3., 3.]), 'converged')

    Source: Liu & Nocedal 1989; the vector-free form of Dean et al. 2012, section 4.2.
    """
    flat = _Flat(x0)
    if line_search not in SEARCHES:
        raise InputError(f"line_search={line_search!r} is not known", [("one of", " ".join(SEARCHES))])
    _check_numbers({"history": history, "max_iterations": max_iterations, "max_evaluations": max_evaluations}, least=1)
    tolerances = {"gradient": tolerance_gradient, "step": tolerance_step, "value": tolerance_value}
    _check_numbers({f"tolerance_{name}": tolerance for name, tolerance in tolerances.items()} | {"noise": noise})
    rounding = torch.finfo(flat.start.dtype).eps
    spec = LbfgsSpec(
        history=history,
        line_search=line_search,
        search=SearchSpec(noise=10 * rounding if noise is None else noise),
        damping=0.2 if line_search == "armijo" else 0.0,
        tolerance_gradient=tolerance_gradient,
        tolerance_step=tolerance_step,
        tolerance_value=tolerance_value,
        max_iterations=max_iterations,
        max_evaluations=max_evaluations,
    )

    def function(x: torch.Tensor, into: torch.Tensor) -> float:
        leaves = [part.detach().requires_grad_() for part in flat.parts(x)]
        with torch.enable_grad():
            value = objective(flat.like(leaves))
        _check_value(value)
        found = torch.autograd.grad(value, leaves, allow_unused=True)
        for part, gradient in zip(flat.parts(into), found, strict=True):
            part.zero_() if gradient is None else part.copy_(gradient)
        return float(value.detach())

    async def told(state: State) -> None:
        if callback is not None:
            callback(Iteration(state.iterations, state.evaluations, state.value, state.history.gradient_norm))

    problem = Local(function, flat.start, history)
    state, ended = finished(minimise(problem, spec, told=told))
    return Minimum(
        flat.like([part.clone() for part in flat.parts(problem.x)]),
        state.value,
        state.history.gradient_norm,
        state.iterations,
        state.evaluations,
        ended.outcome,
        ended.why,
        ended.advice,
    )


class _Flat:
    """Tensors as one vector, and back."""

    def __init__(self, given: Any) -> None:
        self._given = given
        if isinstance(given, torch.Tensor):
            tensors = [given]
        elif isinstance(given, Mapping):
            tensors = list(given.values())
        else:
            tensors = list(given) if isinstance(given, Sequence) else []
        if not tensors or not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
            raise InputError("x0 is no tensor, list of tensors or mapping to tensors", [("found", repr(given)[:80])])
        types = {tensor.dtype for tensor in tensors}
        if len(types) > 1 or not types <= {torch.float32, torch.float64}:
            found = ", ".join(sorted(map(str, types)))
            rule = "all of x0 is float32, or all float64"
            raise InputError(f"x0 is {found}", [("rule", rule), ("to do", "x0.double()")])
        self._shapes = [tensor.shape for tensor in tensors]
        self.start = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])

    def parts(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """Views of a vector, in the tensors' shapes."""
        cut = torch.split(vector, [shape.numel() for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(cut, self._shapes, strict=True)]

    def like(self, parts: list[torch.Tensor]) -> Any:
        """As it was given."""
        if isinstance(self._given, torch.Tensor):
            return parts[0]
        if isinstance(self._given, Mapping):
            return dict(zip(self._given, parts, strict=True))
        return parts


def _check_numbers(options: Mapping[str, float | None], least: float = 0) -> None:
    for name, value in options.items():
        if value is not None and not value >= least:
            raise InputError(f"{name}={value}", [("rule", f"{name} is at least {least}")])


def _check_value(value: Any) -> None:
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        found = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise InputError("the objective returned no scalar tensor", [("found", found), ("to do", "its sum or mean")])
    if not value.requires_grad:
        raise InputError(
            "the objective's value does not depend on x",
            [("rule", "it is differentiated by autograd"), ("to do", "compute it from x with torch, without detach()")],
        )
