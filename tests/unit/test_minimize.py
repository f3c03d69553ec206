"""`squall.minimize`: classic problems to the optimum, and what it says of mistakes."""

import itertools
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import squall
from squall.data.digits import read
from squall.errors import InputError


def digits() -> tuple[Tensor, Tensor]:
    images, labels = read("train")
    return torch.from_numpy(images).flatten(1).double() / 255, torch.from_numpy(labels)


def test_logistic_regression_reaches_scipys_optimum() -> None:
    """Convex: the optimum is one. To 1e-8 of the value, relative."""
    images, labels = digits()

    def loss(x: dict[str, Tensor]) -> Tensor:
        fit = cross_entropy(images @ x["weight"] + x["bias"], labels)
        return fit + 1e-3 * (x["weight"] ** 2).sum() / 2

    start = {"weight": torch.zeros(64, 10).double(), "bias": torch.zeros(10).double()}
    found = squall.minimize(loss, start, tolerance_gradient=1e-7)

    def both(flat: Any) -> tuple[float, Any]:
        x = torch.tensor(flat, requires_grad=True)
        value = loss({"weight": x[:640].view(64, 10), "bias": x[640:]})
        return float(value.detach()), torch.autograd.grad(value, x)[0].numpy()

    options = {"gtol": 1e-9, "ftol": 0.0, "maxfun": 5000, "maxiter": 5000}
    best = scipy.optimize.minimize(both, np.zeros(650), jac=True, method="L-BFGS-B", options=options)
    assert found.converged, found
    assert abs(found.value - best.fun) <= 1e-8 * best.fun
    assert found.evaluations <= 1.1 * best.nfev
    predicted = (images @ found.x["weight"] + found.x["bias"]).argmax(1)
    assert (predicted == labels).double().mean() > 0.97


def test_a_matrix_is_factored() -> None:
    """Not convex, and rank 3: the product is found again."""
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(size, generator=generator).double() for size in ((30, 3), (3, 20)))
    begun = [torch.randn(size, generator=generator).double() for size in ((30, 3), (3, 20))]
    found = squall.minimize(lambda x: ((x[0] @ x[1] - left @ right) ** 2).mean(), begun, tolerance_gradient=1e-9)
    assert found.converged
    torch.testing.assert_close(found.x[0] @ found.x[1], left @ right, rtol=0, atol=1e-6)


def test_x_comes_back_as_it_was_given_and_x0_stays() -> None:
    start = torch.zeros(2, 3)
    found = squall.minimize(lambda x: ((x - 3) ** 2).sum(), start)
    assert found.x.shape == (2, 3)
    assert found.x.dtype == torch.float32
    assert not start.any()
    assert not found.x.requires_grad
    named = squall.minimize(lambda x: ((x["a"] - 1) ** 2).sum() + (x["b"] ** 2).sum(), {"b": torch.ones(2), "a": start})
    assert list(named.x) == ["b", "a"]
    torch.testing.assert_close(named.x["a"], torch.ones(2, 3))


def test_a_part_that_does_not_count_is_left_where_it_was() -> None:
    found = squall.minimize(lambda x: (x[0] ** 2).sum(), [torch.ones(2), torch.full((3,), 7.0)])
    assert found.x[1].tolist() == [7.0, 7.0, 7.0]


def test_each_iteration_is_told() -> None:
    told: list[Any] = []
    found = squall.minimize(lambda x: (x**4).sum(), torch.ones(2).double(), callback=told.append)
    assert [each.number for each in told] == list(range(1, found.iterations + 1))
    assert told[-1].value == found.value
    assert told[-1].evaluations == found.evaluations
    assert all(a.value > b.value for a, b in itertools.pairwise(told))


def test_a_budget_ends_it_with_advice() -> None:
    found = squall.minimize(lambda x: (x**4).sum(), torch.ones(2), max_iterations=2)
    assert (found.outcome, found.iterations) == ("budget spent", 2)
    assert "max_iterations=4" in found.advice


@pytest.mark.parametrize(
    ("objective", "start", "said"),
    [
        (lambda x: x, torch.ones(2), "no scalar tensor"),
        (lambda x: 1.0, torch.ones(2), "no scalar tensor"),
        (lambda x: x.detach().sum(), torch.ones(2), "does not depend on x"),
        (lambda x: x.sum(), torch.ones(2, dtype=torch.int64), "x0 is torch.int64"),
        (lambda x: x[0].sum(), [torch.ones(2), torch.ones(2).double()], "x0 is torch.float32, torch.float64"),
        (lambda x: x, 3.0, "x0 is no tensor"),
        (lambda x: x, [], "x0 is no tensor"),
    ],
)
def test_mistakes_are_said(objective: Any, start: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        squall.minimize(objective, start)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"line_search": "wolfe"}, "line_search='wolfe'"),
        ({"history": 0}, "history=0"),
        ({"tolerance_gradient": -1.0}, "tolerance_gradient=-1.0"),
        ({"max_iterations": 0}, "max_iterations=0"),
        ({"noise": float("nan")}, "noise=nan"),
    ],
)
def test_options_are_checked(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        squall.minimize(lambda x: x.sum(), torch.ones(2), **options)


def test_what_the_objective_raises_comes_through() -> None:
    def broken(x: Tensor) -> Tensor:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        squall.minimize(broken, torch.ones(2))
