"""Sums whose bits do not depend on the order."""

import math
import random

import pytest
import torch

from squall.server.exact import ExactSums

SIZE, MANY = 70_001, 40  # more than a block


def summands(dtype: torch.dtype, spread: float = 3.0) -> list[torch.Tensor]:
    """Vectors whose elements differ by orders of magnitude, and largely cancel."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(MANY):
        size = torch.randn(SIZE, generator=generator, dtype=dtype).mul_(spread).exp_()
        found.append(torch.randn(SIZE, generator=generator, dtype=dtype) * size)
    return found


def total(vectors: list[torch.Tensor], largest: float = 0.0) -> ExactSums:
    sums = ExactSums(SIZE, vectors[0].dtype)
    sums.begin(largest, len(vectors))
    for vector in vectors:
        sums.add(vector)
    return sums


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_any_order_gives_the_same_bits(dtype: torch.dtype) -> None:
    """The first, which says how large they are, stays the first; with a size given, none has to."""
    first, *rest = summands(dtype)
    sums = total([first, *rest])
    assert sums.exact
    expected = sums.take()
    for seed in range(5):
        random.Random(seed).shuffle(rest)
        assert torch.equal(total([first, *rest]).take(), expected)
    given = total([first, *rest], sums.largest).take()
    random.Random(9).shuffle(rest)
    assert torch.equal(total([*rest, first], sums.largest).take(), given)
    plain = [sum(order, torch.zeros(SIZE, dtype=torch.float64)) for order in ([first, *rest], [*rest, first])]
    assert not torch.equal(*plain)  # what plain addition in float64 makes of it


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 2.0**-33), (torch.float64, 2.0**-50)], ids=str)
def test_the_sum_is_right_to_far_below_the_precision_of_what_is_added(dtype: torch.dtype, most: float) -> None:
    vectors = summands(dtype, spread=0.0)
    sums = total(vectors)
    expected = torch.tensor([math.fsum(column) for column in torch.stack(vectors).T.tolist()], dtype=torch.float64)
    assert (sums.take() - expected).abs().max() < most * sums.largest


def test_it_begins_again_with_zero() -> None:
    sums = ExactSums(3, torch.float32)
    for _ in range(2):
        sums.begin(1.0, 2)
        sums.add(torch.ones(3))
        sums.add(torch.full((3,), -0.25))
        assert sums.take().tolist() == [0.75] * 3


def test_a_summand_for_which_there_is_no_room_is_said() -> None:
    """Five hundred times what was expected fits; a million times does not, and is added all the same."""
    for factor, exact in ((500.0, True), (1e6, False)):
        sums = ExactSums(2, torch.float32)
        sums.begin(1.0, 2)
        sums.add(torch.ones(2))
        sums.add(torch.full((2,), factor))
        assert sums.exact == exact
        assert sums.take()[0] == pytest.approx(1 + factor, rel=1e-6)


def test_zeros_and_what_is_not_finite() -> None:
    sums = ExactSums(2, torch.float32)
    sums.begin(0.0, 3)
    sums.add(torch.zeros(2))
    sums.add(torch.tensor([0.5, 2.0]))
    sums.add(torch.tensor([math.inf, 1.0]))
    assert sums.take().tolist() == [math.inf, 3.0]
    empty = ExactSums(0, torch.float32)
    empty.begin(0.0, 1)
    empty.add(torch.zeros(0))
    assert empty.exact
