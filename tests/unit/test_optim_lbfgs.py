"""L-BFGS against its textbook and against SciPy's, on one vector and on one that is cut into slices."""

import json
import math
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from squall.optim.algebra import Combine, Command, Dots, Matrix, Vectors
from squall.optim.lbfgs import (
    DIRECTION,
    GRADIENT,
    TRIAL,
    TRIAL_GRADIENT,
    Ended,
    History,
    LbfgsSpec,
    State,
    minimise,
    names,
)
from squall.optim.linesearch import SearchSpec
from squall.optim.local import Local, finished
from tests.functions import HARD, Scalar, quadratic, rosenbrock, vector, with_gradient


def minimised(function: Scalar, start: Tensor, **options: Any) -> tuple[Local, State, Ended]:
    spec = LbfgsSpec(**options)
    problem = Local(with_gradient(function), start, spec.history)
    return problem, *finished(minimise(problem, spec))


# -- the direction ----------------------------------------------------------------------------------------------


def two_loops(pairs: list[tuple[Tensor, Tensor]], gradient: Tensor) -> Tensor:
    """Nocedal & Wright's algorithm 7.4, on vectors."""
    r, shares = gradient.clone(), []
    for s, y in reversed(pairs):
        shares.append(s @ r / (s @ y))
        r -= shares[-1] * y
    s, y = pairs[-1]
    r *= s @ y / (y @ y)
    for s, y in pairs:
        r += (shares.pop() - y @ r / (s @ y)) * s
    return -r


class Cut:
    """Vectors in slices of unequal length: a parameter server without processes. Counts what travels."""

    def __init__(self, vectors: tuple[str, ...], sizes: list[int], dtype: torch.dtype) -> None:
        self.slices, self.sizes = [Vectors(vectors, size, dtype) for size in sizes], sizes
        self.bytes = 0

    def put(self, name: str, vector: Tensor) -> None:
        for part, piece in zip(self.slices, vector.split(self.sizes), strict=True):
            part[name].copy_(piece)

    def get(self, name: str) -> Tensor:
        return torch.cat([part[name] for part in self.slices])

    async def do(self, *commands: Command) -> list[Matrix]:
        answers = [part.do(*commands) for part in self.slices]
        self.bytes += len(self.slices) * len(json.dumps([vars(command) for command in commands])) + len(str(answers))
        return [tuple(map(tuple, sum(np.array(each) for each in same).tolist())) for same in zip(*answers, strict=True)]


def random_pairs(size: int, number: int, condition: float) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Steps, and changes of gradient of a quadratic of that condition."""
    generator = torch.Generator().manual_seed(size + number)
    curvatures = torch.logspace(0, math.log10(condition), size, dtype=torch.float64)
    steps = [torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(number)]
    return [(s, curvatures * s) for s in steps], torch.randn(size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("sizes", [[200_003], [64, 70_000, 129_939]], ids=["one piece", "three slices"])
@pytest.mark.parametrize("number", [1, 3, 5, 8], ids="{} pairs".format)
@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
def test_the_direction_is_that_of_the_two_loops(sizes: list[int], number: int, dtype: torch.dtype, most: float) -> None:
    """Also when the history has overflowed, and a slot is used again."""
    pairs, gradient = random_pairs(sum(sizes), number, 1e6)
    history, space = History(5), Cut(names(5), sizes, dtype)
    space.put(GRADIENT, gradient)
    for s, y in pairs:
        slot = history.take_slot()
        mine = (f"s{slot}", f"y{slot}")
        space.put(mine[0], s)
        space.put(mine[1], y)
        rows = (*mine, GRADIENT)
        (products,) = finished(space.do(Dots(rows, history.basis)))
        history.tell(rows, products)
    direction = history.direction()
    finished(space.do(Combine(DIRECTION, direction.terms)))
    expected = two_loops(pairs[-5:], gradient)
    error = (space.get(DIRECTION).double() - expected).norm() / expected.norm()
    assert error < most
    assert direction.slope == pytest.approx(float(expected @ gradient), rel=most)
    assert direction.norm == pytest.approx(float(expected.norm()), rel=most)


@pytest.mark.parametrize("sizes", [[10_001], [4_000, 1, 6_000]], ids=["one piece", "three slices"])
def test_slices_take_the_same_way_as_one_piece(sizes: list[int]) -> None:
    """D8: only sums of their inner products know of the cuts."""
    target = torch.linspace(1, 2, sum(sizes), dtype=torch.float64)

    class Problem(Cut):
        async def evaluate(self) -> float:
            x = self.get(TRIAL)
            self.put(TRIAL_GRADIENT, target * (x - 1) + (x - 1) ** 3)
            return float((target * (x - 1) ** 2 / 2 + (x - 1) ** 4 / 4).sum())

    problem = Problem(names(4), sizes, torch.float64)
    state, ended = finished(minimise(problem, LbfgsSpec(history=4, tolerance_gradient=1e-9)))
    local, alone, _ = minimised(
        lambda x: (target * (x - 1) ** 2 / 2 + (x - 1) ** 4 / 4).sum(),
        torch.zeros(sum(sizes), dtype=torch.float64),
        history=4,
        tolerance_gradient=1e-9,
    )
    assert ended.outcome == "converged"
    assert (state.iterations, state.evaluations) == (alone.iterations, alone.evaluations)
    torch.testing.assert_close(problem.get("x"), local.x, rtol=0, atol=1e-10)


def test_what_travels_does_not_know_the_size_of_the_vectors() -> None:
    """D9, without processes: commands and answers of an iteration are as many bytes for any size, to the digits of
    their numbers."""
    travelled = []
    for size in (10**4, 10**6):

        class Problem(Cut):
            async def evaluate(self) -> float:
                x = self.get(TRIAL)
                self.put(TRIAL_GRADIENT, x - 1)
                return float(((x - 1) ** 2).mean() / 2)

        problem = Problem(names(10), [size], torch.float32)
        spec = LbfgsSpec(max_iterations=8, tolerance_gradient=0.0)
        state, _ = finished(minimise(problem, spec))
        travelled.append(problem.bytes / state.evaluations)
    assert travelled[0] == pytest.approx(travelled[1], rel=0.05)


# -- the way down -----------------------------------------------------------------------------------------------


def evaluations_to(tolerance: float, log: list[float], name: str) -> int:
    """Evaluations until the gradient's largest element is within a tolerance."""
    found = next((number for number, largest in enumerate(log, 1) if largest <= tolerance), None)
    assert found is not None, f"{name} was not solved"
    return found


def test_on_hard_functions_it_needs_no_more_evaluations_than_scipy() -> None:
    """Same history, same tolerance; in total within a tenth, and on none twice as many."""
    ours, theirs = {}, {}
    for name, (function, start) in HARD.items():
        log: list[float] = []
        problem = Local(with_gradient(function, log), start, 10)
        spec = LbfgsSpec(history=10, tolerance_gradient=1e-7, max_evaluations=5000)
        finished(minimise(problem, spec))
        ours[name] = evaluations_to(1e-6, log, name)
        other: list[float] = []
        evaluated = with_gradient(function, other)

        def both(x: Any, evaluated: Any = evaluated) -> tuple[float, Any]:
            into = torch.empty(len(x), dtype=torch.float64)
            return evaluated(torch.tensor(x), into), into.numpy()

        options = {"maxcor": 10, "gtol": 1e-6, "ftol": 0.0, "maxfun": 5000, "maxiter": 5000}
        scipy.optimize.minimize(both, start.numpy(), jac=True, method="L-BFGS-B", options=options)
        theirs[name] = evaluations_to(1e-6, other, name)
    assert sum(ours.values()) <= 1.1 * sum(theirs.values()), (ours, theirs)
    assert all(ours[name] < 2 * theirs[name] for name in HARD), (ours, theirs)


@pytest.mark.parametrize("size", [10, 50])
def test_a_quadratic_takes_no_more_iterations_than_it_has_dimensions(size: int) -> None:
    """D8, with a history as long and steps that end where the slope does: to 1e-8."""
    search = SearchSpec(c2=0.1)
    problem, state, ended = minimised(
        quadratic(1e3, size), vector(*[0] * size), history=size, tolerance_gradient=1e-8, search=search
    )
    assert ended.outcome == "converged"
    assert state.iterations <= size
    assert (problem.x - 1).norm() < 1e-8


def test_it_beats_gradient_descent_on_rosenbrock() -> None:
    """D8: a history of no use is gradient descent with the same search."""
    _, state, _ = minimised(rosenbrock, vector(-1.2, 1), tolerance_gradient=1e-6, max_evaluations=200)
    steepest = Local(with_gradient(rosenbrock), vector(-1.2, 1), 1)
    spec = LbfgsSpec(history=1, curvature=math.inf, tolerance_gradient=1e-6, max_evaluations=200)
    other, ended = finished(minimise(steepest, spec))
    assert state.value < 1e-10
    assert other.kept == 0
    assert ended.outcome == "budget spent"
    assert other.value > 1e-3


def test_armijo_with_damping_gets_there_too() -> None:
    options = {"line_search": "armijo", "damping": 0.2, "tolerance_gradient": 1e-6, "max_evaluations": 1000}
    for name, (function, start) in HARD.items():
        if "quadratic" not in name:
            _, state, ended = minimised(function, start, **options)
            assert ended.outcome == "converged", name
            assert state.value < 1e-8


def test_a_damped_pair_has_the_share_of_curvature_that_was_asked_for() -> None:
    """Powell: s.y is drawn up to a share of s.Bs; B s is -t g, as the step t d was -t H g."""
    problem = Local(with_gradient(rosenbrock), vector(*[-1.2, 1] * 5), 5)
    spec = LbfgsSpec(history=5, line_search="armijo", damping=0.2, tolerance_gradient=1e-8, max_evaluations=500)
    before: dict[str, Tensor] = {}
    damped: list[float] = []
    kept: list[float] = []

    async def told(state: State) -> None:
        vectors = problem._vectors
        for slot in state.history.slots[-1:]:
            s, y, d = vectors[f"s{slot}"], vectors[f"y{slot}"], vectors[DIRECTION]
            if before:
                step = s @ d / (d @ d)
                share = float(s @ y / (-step * s @ before["g"]))
                (damped if state.damped > len(damped) else kept).append(share)
            before["g"] = vectors[GRADIENT].clone()

    _, ended = finished(minimise(problem, spec, told=told))
    assert ended.outcome == "converged"
    assert len(damped) >= 3
    assert damped == pytest.approx([0.2] * len(damped), rel=1e-6)
    assert min(kept) >= 0.2


# -- how it ends ------------------------------------------------------------------------------------------------


def test_without_damping_a_pair_that_bends_the_wrong_way_is_left_out() -> None:
    def saddle(x: Tensor) -> Tensor:
        return torch.cos(x).sum() + 0.001 * (x**2).sum()

    _, state, ended = minimised(saddle, vector(0.3, 0.2, 0.1), line_search="armijo", max_evaluations=500)
    assert state.skipped >= 1
    assert ended.outcome == "converged"


def test_a_gradient_of_the_wrong_sign_ends_with_no_descent() -> None:
    def wrong(x: Tensor, into: Tensor) -> float:
        into.copy_(-2 * x)
        return float((x**2).sum())

    problem = Local(wrong, vector(1, 2), 5)
    state, ended = finished(minimise(problem, LbfgsSpec()))
    assert ended.outcome == "no descent"
    assert "gradient" in ended.advice
    assert problem.x.tolist() == [1, 2]
    assert state.value == 5.0


def test_at_the_limit_of_rounding_the_end_is_a_value_and_the_best_point_stays() -> None:
    """float32: the tolerance is out of reach. Without tolerance for noise there is no descent; x is still the best."""
    curvatures = torch.logspace(0, 4, 500)
    problem, state, ended = minimised(
        lambda x: (curvatures * (x - 1) ** 2).sum() / 2 + 1.0,
        torch.zeros(500),
        tolerance_gradient=0.0,
        max_evaluations=3000,
        search=SearchSpec(noise=0.0),
    )
    assert ended.outcome == "no descent"
    assert state.restarts >= 1
    assert state.value == pytest.approx(1.0, abs=1e-5)
    assert (problem.x - 1).abs().max() < 1e-2


def test_a_point_that_is_not_finite_is_never_taken() -> None:
    def walled(x: Tensor) -> Tensor:
        return -torch.log(1 - x).sum() - 5 * x.sum() if bool((x < 1).all()) else x.sum() * math.nan

    problem, state, ended = minimised(walled, vector(0, -3), tolerance_gradient=1e-9)
    assert ended.outcome == "converged"
    torch.testing.assert_close(problem.x, vector(0.8, 0.8))
    assert math.isfinite(state.value)


@pytest.mark.parametrize(
    ("options", "outcome", "why"),
    [
        ({"tolerance_gradient": 1e3}, "converged", "gradient"),
        ({"tolerance_gradient": 0.0, "tolerance_step": 1e-3}, "converged", "step"),
        ({"tolerance_gradient": 0.0, "tolerance_value": 1e-3}, "converged", "decrease"),
        ({"max_iterations": 3}, "budget spent", "3 iterations"),
        ({"max_evaluations": 4}, "budget spent", "4 evaluations"),
    ],
)
def test_each_end_says_which_test_was_met(options: dict[str, Any], outcome: str, why: str) -> None:
    _, state, ended = minimised(rosenbrock, vector(-1.2, 1), **options)
    assert ended.outcome == outcome
    assert why in ended.why
    assert state.evaluations <= options.get("max_evaluations", 1000)


def test_a_beginning_that_is_not_finite_is_said() -> None:
    _, _, ended = minimised(lambda x: torch.log(x).sum(), vector(-1))
    assert ended.outcome == "not finite"


def test_what_is_told_is_enough_to_go_on_with() -> None:
    """State as plain values, and the vectors: the way from there is the same, to the last bit."""
    spec = LbfgsSpec(history=4, tolerance_gradient=1e-8)
    whole = Local(with_gradient(rosenbrock), vector(*[-1.2, 1] * 3), 4)
    seen: list[Tensor] = []
    kept: dict[str, Any] = {}

    async def told(state: State) -> None:
        seen.append(whole.x.clone())
        if state.iterations == 17:
            kept["state"] = json.dumps(state.values())
            kept["vectors"] = {name: whole._vectors[name].clone() for name in names(4)}

    end, _ = finished(minimise(whole, spec, told=told))
    again = Local(with_gradient(rosenbrock), vector(*[0] * 6), 4)
    for name, tensor in kept["vectors"].items():
        again._vectors[name].copy_(tensor)
    state, _ = finished(minimise(again, spec, State.of(json.loads(kept["state"]), 4)))
    assert (state.iterations, state.evaluations) == (end.iterations, end.evaluations)
    assert torch.equal(again.x, whole.x)
