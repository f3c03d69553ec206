"""`squall.minimize`: the batch optimiser over a function of the user's own, without recipe or data set.

In this process by default. A function that is a sum of portions can also be computed by replicas, on Ray or in
simulated time, with all vectors on shards (`squall.training.solver_roles`): the same algorithm file, and Sandblaster's
roles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import torch

from squall.errors import InputError
from squall.optim.lbfgs import LbfgsSpec, Outcome, State, minimise
from squall.optim.linesearch import SEARCHES, SearchSpec
from squall.optim.local import Local, finished
from squall.reduce.flat import place

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
    objective: Callable[..., torch.Tensor],
    x0: Tensors,
    *,
    portions: int | None = None,
    engine: Literal["ray", "simulated"] | None = None,
    replicas: int = 2,
    shards: int = 1,
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
            With `portions`, objective(x, portion) is one of so many summands, portion = 0 .. portions - 1.
        x0: where it begins: a tensor, a list of tensors, or tensors by name; all float32, or all float64. Left alone.
        portions: summands of the function; None: it is a whole.
        engine: who computes the portions: replicas on a private Ray on this machine, or the same in simulated time;
            None: this process, one after the other. The result is the same, bit for bit, for any number of replicas.
        replicas, shards: with an engine: processes that compute portions, and that hold slices of all vectors.
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
        UserCodeError: with an engine, what the objective raised; without one it comes through as it is.

    Example:
        >>> import torch, squall
        >>> found = squall.minimize(lambda x: ((x - 3) ** 2).sum(), torch.zeros(2))
        >>> found.x, found.outcome
        (tensor([3., 3.]), 'converged')

    Source: Liu & Nocedal 1989; the vector-free form of Dean et al. 2012, section 4.2.
    """
    flat = Flat(x0)
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

    _check_engine(engine, portions)
    _check_numbers({"portions": portions, "replicas": replicas, "shards": shards}, least=1)
    if engine is not None and portions is not None:
        from squall.training.solver_roles import minimised

        return minimised(objective, flat, spec, engine, portions, replicas, shards, callback)

    def function(x: torch.Tensor, into: torch.Tensor) -> float:
        if portions is None:
            return flat.evaluated(objective, x, into)
        part, value = torch.zeros_like(into), 0.0
        into.zero_()
        for portion in range(portions):
            value += flat.evaluated(objective, x, part, portion)
            into.add_(part)
        return value

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


class Flat:
    """Tensors as one vector, and back.

    Arguments:
        given: by the user, as x0.

    Attributes:
        places: of the tensors.
        start: the vector; (size,).
    """

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
        self.places = place((str(index), tensor.detach()) for index, tensor in enumerate(tensors))
        self.start = torch.zeros(self.places[-1].end, dtype=tensors[0].dtype, device=tensors[0].device)
        for part, tensor in zip(self.parts(self.start), tensors, strict=True):
            part.copy_(tensor.detach())

    def parts(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """Views of a vector, in the tensors' shapes."""
        return [place.view(vector) for place in self.places]

    def like(self, parts: list[torch.Tensor]) -> Any:
        """As it was given."""
        if isinstance(self._given, torch.Tensor):
            return parts[0]
        if isinstance(self._given, Mapping):
            return dict(zip(self._given, parts, strict=True))
        return parts

    def evaluated(
        self, objective: Callable[..., torch.Tensor], x: torch.Tensor, into: torch.Tensor, *portion: int
    ) -> float:
        """The objective's value, or that of a portion, at a vector; the gradient is written to another."""
        leaves = [part.detach().requires_grad_() for part in self.parts(x)]
        with torch.enable_grad():
            value = objective(self.like(leaves), *portion)
        _check_value(value)
        found = torch.autograd.grad(value, leaves, allow_unused=True)
        for part, gradient in zip(self.parts(into), found, strict=True):
            part.zero_() if gradient is None else part.copy_(gradient)
        return float(value.detach())


def _check_engine(engine: str | None, portions: int | None) -> None:
    if engine not in (None, "ray", "simulated"):
        raise InputError(f"engine={engine!r} is not known", [("one of", "ray simulated")])
    if engine is not None and portions is None:
        raise InputError(
            f"engine={engine!r} without portions",
            [
                ("rule", "replicas compute summands of the function, one portion after the other"),
                ("to do", "portions=N and objective(x, portion), whose sum over 0 .. N - 1 is the function"),
            ],
        )


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
