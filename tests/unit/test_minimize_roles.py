"""`squall.minimize` over portions: in this process, by replicas in simulated time; the same minimum."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import squall
from squall.data.digits import read
from squall.errors import InputError, UserCodeError

PORTIONS = 6


def digits() -> tuple[Tensor, Tensor]:
    images, labels = read("test")
    return torch.from_numpy(images).flatten(1).double() / 255, torch.from_numpy(labels)


IMAGES, LABELS = digits()


def summand(x: dict[str, Tensor], portion: int) -> Tensor:
    """Logistic regression on a sixth of the digits; the penalty is cut likewise."""
    mine = slice(portion * 60, portion * 60 + 60)
    fit = cross_entropy(IMAGES[mine] @ x["weight"] + x["bias"], LABELS[mine], reduction="sum") / len(LABELS)
    return fit + 1e-3 * (x["weight"] ** 2).sum() / 2 / PORTIONS


def start() -> dict[str, Tensor]:
    return {"weight": torch.zeros(64, 10).double(), "bias": torch.zeros(10).double()}


def test_replicas_and_shards_come_to_the_same_minimum_as_this_process() -> None:
    whole = squall.minimize(lambda x: sum(summand(x, p) for p in range(PORTIONS)), start())
    here = squall.minimize(summand, start(), portions=PORTIONS)
    told: list[Any] = []
    by_roles = squall.minimize(
        summand, start(), portions=PORTIONS, engine="simulated", replicas=3, shards=2, callback=told.append
    )
    for found in (whole, here, by_roles):
        assert found.converged
        assert found.value == pytest.approx(whole.value, rel=1e-6)
        assert list(found.x) == ["weight", "bias"]
        torch.testing.assert_close(found.x["weight"], whole.x["weight"], rtol=0, atol=0.01)
    assert [each.number for each in told] == list(range(1, by_roles.iterations + 1))
    assert told[-1].value == by_roles.value
    assert told[-1].gradient_norm == by_roles.gradient_norm


def test_any_number_of_replicas_gives_the_same_bits() -> None:
    found = [
        squall.minimize(summand, start(), portions=PORTIONS, engine="simulated", replicas=replicas, max_iterations=8)
        for replicas in (1, 2, 5)
    ]
    for other in found[1:]:
        assert other.value == found[0].value
        assert all(torch.equal(other.x[name], found[0].x[name]) for name in other.x)
    assert found[0].outcome == "budget spent"
    assert "max_iterations=16" in found[0].advice


def test_what_the_objective_raises_names_the_portion() -> None:
    def broken(x: Tensor, portion: int) -> Tensor:
        if portion == 3:
            raise ValueError("mine")
        return (x**2).sum()

    with pytest.raises(UserCodeError, match="portion 3 of the objective"):
        squall.minimize(broken, torch.ones(70), portions=4, engine="simulated")


def test_a_start_that_is_not_finite_is_an_outcome() -> None:
    found = squall.minimize(
        lambda x, portion: torch.log(x).sum(), -torch.ones(70), portions=2, engine="simulated", replicas=1
    )
    assert found.outcome == "not finite"
    assert found.x.tolist() == [-1.0] * 70


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"engine": "ray"}, "engine='ray' without portions"),
        ({"engine": "spark", "portions": 2}, "engine='spark' is not known"),
        ({"portions": 0}, "portions=0"),
        ({"portions": 2, "replicas": 0}, "replicas=0"),
        ({"portions": 2, "engine": "simulated", "shards": 9}, "more than the model can be cut into"),
    ],
)
def test_mistakes_are_said(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        squall.minimize(lambda x, portion=0: (x**2).sum(), torch.ones(70), **options)
