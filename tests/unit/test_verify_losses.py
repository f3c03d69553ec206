"""What is read of a loss from its graph: each term, the factor with which it enters, and the units that it is made of.

The reference is not the graph: the weight of a unit is found by moving that unit's own loss, or known by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from squall.verify.observe.losses import Terms
from tests.unit.observing import observed

SIZE, KINDS = 6, 5
MADE = torch.Generator().manual_seed(0)
X = torch.randn(SIZE, 3, generator=MADE)
KIND = torch.tensor([0, 1, 2, 3, 4, 1])
IGNORED = torch.tensor([0, 1, -100, 3, -100, 1])
WEIGHTS = torch.rand(KINDS, generator=MADE) + 0.5
WANTED = torch.randn(SIZE, 1, generator=MADE)
SOFT = torch.softmax(torch.randn(SIZE, KINDS, generator=MADE), 1)
LAYERS = nn.Linear(3, KINDS), nn.Linear(3, 1)


def kinds() -> Tensor:
    return LAYERS[0](X)


def values() -> Tensor:
    return LAYERS[1](X)


def terms(loss: Tensor) -> list[dict[str, Any]]:
    found = Terms(loss)
    loss.backward()
    return found.close()


def read(loss: Tensor) -> list[tuple[str, int | None, float | None, bool]]:
    """How, units, factor, penalty."""
    return [
        (one["how"], one.get("units"), one["factor"] and pytest.approx(one["factor"]), bool(one.get("penalty")))
        for one in terms(loss)
    ]


MEANS: dict[str, tuple[Callable[[], Tensor], int]] = {
    "cross entropy": (lambda: F.cross_entropy(kinds(), KIND), 6),
    "cross entropy, some ignored": (lambda: F.cross_entropy(kinds(), IGNORED), 4),
    "cross entropy of pictures": (lambda: F.cross_entropy(kinds().t()[None, :, :, None], IGNORED[None, :, None]), 4),
    "nll": (lambda: F.nll_loss(F.log_softmax(kinds(), 1), KIND), 6),
    "vector of losses": (lambda: F.cross_entropy(kinds(), KIND, reduction="none").mean(), 6),
    "mse": (lambda: F.mse_loss(values(), WANTED), 6),
    "mse in float64": (lambda: F.mse_loss(values().double(), WANTED.double()), 6),
    "l1": (lambda: F.l1_loss(values(), WANTED), 6),
    "smooth l1": (lambda: F.smooth_l1_loss(values(), WANTED), 6),
    "huber": (lambda: F.huber_loss(values(), WANTED), 6),
    "bce": (lambda: F.binary_cross_entropy(values().sigmoid(), WANTED.sigmoid()), 6),
    "bce of logits": (lambda: F.binary_cross_entropy_with_logits(values(), WANTED.sigmoid()), 6),
    "poisson": (lambda: F.poisson_nll_loss(values(), WANTED.exp()), 6),
    "gaussian": (lambda: F.gaussian_nll_loss(values(), WANTED, torch.ones(SIZE, 1)), 6),
    "soft margin": (lambda: F.soft_margin_loss(values(), WANTED.sign()), 6),
    "hinge embedding": (lambda: F.hinge_embedding_loss(values(), WANTED.sign()), 6),
    "multi margin": (lambda: F.multi_margin_loss(kinds(), KIND), 6),
    "multilabel margin": (lambda: F.multilabel_margin_loss(kinds(), KIND[:, None].expand(SIZE, KINDS)), 6),
    "multilabel soft margin": (lambda: F.multilabel_soft_margin_loss(kinds(), SOFT.round()), 6),
    "triplet": (lambda: F.triplet_margin_loss(kinds(), kinds() + 1, kinds() - 1), 6),
    "cosine": (lambda: F.cosine_embedding_loss(kinds(), SOFT, torch.ones(SIZE)), 6),
    "own": (lambda: ((values() - WANTED) ** 2).mean(), 6),
    "own, rows": (lambda: ((kinds() - SOFT) ** 2).sum(1).mean(), 6),
    "own, chosen": (lambda: (values() - WANTED)[:4].abs().mean(), 4),
    "mean of a mean": (lambda: F.mse_loss(values(), WANTED).mean(), 6),
    "pooled output": (lambda: F.mse_loss(kinds().mean(1, keepdim=True), WANTED), 6),
    "a list of samples": (lambda: torch.stack([F.mse_loss(values()[i], WANTED[i]) for i in range(SIZE)]).mean(), 6),
}


@pytest.mark.parametrize("name", MEANS)
def test_a_mean_enters_whole_and_its_units_are_counted(name: str) -> None:
    loss, units = MEANS[name]
    assert read(loss()) == [("mean", units, 1.0, False)]


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(
    "loss",
    [
        lambda n: F.mse_loss(values()[:n], WANTED[:n]),
        lambda n: ((values()[:n] - WANTED[:n]) ** 2).mean(),
        lambda n: F.cross_entropy(kinds()[:n], KIND[:n]),
        lambda n: F.cross_entropy(kinds()[:n], KIND[:n], reduction="none").mean(),
    ],
)
def test_a_batch_of_one_is_read_as_larger_ones_are(loss: Callable[[int], Tensor], size: int) -> None:
    assert read(loss(size)) == [("mean", size, 1.0, False)]


SUMS: dict[str, tuple[Callable[[], Tensor], int, float]] = {
    "cross entropy": (lambda: F.cross_entropy(kinds(), IGNORED, reduction="sum"), 4, 1.0),
    "divided by all": (lambda: F.cross_entropy(kinds(), KIND, reduction="sum") / SIZE, 6, 1 / 6),
    "divided by a tensor": (lambda: F.mse_loss(values(), WANTED, reduction="sum") / torch.tensor(12.0), 6, 1 / 12),
    "kl, batchmean": (lambda: F.kl_div(F.log_softmax(kinds(), 1), SOFT, reduction="batchmean"), 30, 1 / 6),
    "multi margin": (lambda: F.multi_margin_loss(kinds(), KIND, reduction="sum"), 6, 1.0),
    "own": (lambda: 0.5 * ((values() - WANTED) ** 2).sum(), 6, 0.5),
    "masked": (lambda: ((values() - WANTED) ** 2 * (WANTED > 0)).sum() / (WANTED > 0).sum(), 6, 1 / (WANTED > 0).sum()),
}


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_enters_with_what_it_was_divided_by(name: str) -> None:
    loss, units, factor = SUMS[name]
    assert read(loss()) == [("sum", units, float(factor), False)]


def test_class_weights_are_summed_over_the_targets_that_count() -> None:
    (one,) = terms(F.cross_entropy(kinds(), IGNORED, weight=WEIGHTS))
    assert one["weighted"]
    assert one["total"] == pytest.approx(float(WEIGHTS[IGNORED[IGNORED >= 0]].sum()))


def test_label_smoothing_is_two_terms_whose_weights_are_the_loss() -> None:
    first, second = terms(F.cross_entropy(kinds(), KIND, label_smoothing=0.1))
    assert (first["how"], first["factor"]) == ("mean", pytest.approx(0.9))
    assert (second["how"], second["factor"] * second["units"]) == ("sum", pytest.approx(0.1 / KINDS))


@settings(max_examples=40, deadline=None)
@given(
    factors=st.lists(st.floats(0.01, 100.0), min_size=1, max_size=4),
    divided=st.lists(st.booleans(), min_size=4, max_size=4),
    as_tensor=st.booleans(),
    second=st.floats(0.01, 10.0),
)
def test_factors_multiply_wherever_they_stand(
    factors: list[float], divided: list[bool], as_tensor: bool, second: float
) -> None:
    first, whole = F.mse_loss(values(), WANTED), 1.0
    for factor, by in zip(factors, divided, strict=False):
        number = torch.tensor(factor) if as_tensor else factor
        first = first / number if by else number * first
        whole = whole / factor if by else whole * factor
    found = terms(first + second * F.cross_entropy(kinds(), KIND))
    assert [one["factor"] for one in found] == [pytest.approx(whole, rel=1e-5), pytest.approx(second, rel=1e-5)]
    product = 1.0
    for constant in found[0]["constants"]:
        product *= constant
    assert product == pytest.approx(whole, rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.1, 10.0), st.integers(1, 2**16))
def test_a_loss_scale_is_part_of_the_factor(weight: float, scale: int) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=float(scale))
    (one,) = terms(scaler.scale(weight * F.mse_loss(values(), WANTED)))
    assert one["factor"] == pytest.approx(weight * scale, rel=1e-5)


def test_terms_come_in_the_order_in_which_they_are_written() -> None:
    first, second, third = (factor * F.mse_loss(values(), WANTED) for factor in (1.0, 2.0, 3.0))
    assert [one["factor"] for one in terms(first + second + third)] == [1.0, 2.0, 3.0]
    first, second, third = (factor * F.mse_loss(values(), WANTED) for factor in (1.0, 2.0, 3.0))
    assert [one["factor"] for one in terms(sum([first, second, third]))] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("together", "factors"),
    [
        (lambda losses: torch.stack(losses).mean(), [0.5, 0.5]),
        (lambda losses: torch.stack(losses).sum() / 4, [0.25, 0.25]),
        (lambda losses: (torch.stack(losses) * torch.tensor([0.3, 0.7])).sum(), [0.3, 0.7]),
        (lambda losses: torch.cat([one.reshape(1) for one in losses]).mean(), [0.5, 0.5]),
        (lambda losses: torch.stack(losses).unbind()[1] + torch.stack(losses)[0], [1.0, 1.0]),
    ],
)
def test_a_mean_of_losses_is_as_many_terms(together: Callable[[list[Tensor]], Tensor], factors: list[float]) -> None:
    found = terms(together([F.mse_loss(values(), WANTED), F.cross_entropy(kinds(), IGNORED)]))
    assert sorted(one["units"] for one in found) == [4, 6]
    assert sorted(one["factor"] for one in found) == pytest.approx(factors)


def test_what_is_detached_is_a_number() -> None:
    other = F.mse_loss(values(), WANTED)
    (one,) = terms(F.cross_entropy(kinds(), KIND) / other.detach())
    assert one["factor"] == pytest.approx(1 / float(other.detach()))


PENALTIES: dict[str, Callable[[], Tensor]] = {
    "squares": lambda: sum(one.pow(2).sum() for one in LAYERS[1].parameters()),  # type: ignore[return-value, misc]
    "products": lambda: sum((one * one).sum() for one in LAYERS[1].parameters()),  # type: ignore[return-value, misc]
    "sizes": lambda: sum(one.abs().sum() for one in LAYERS[1].parameters()),  # type: ignore[return-value, misc]
    "stacked": lambda: torch.stack([one.square().sum() for one in LAYERS[1].parameters()]).sum(),
    "flat": lambda: torch.cat([one.flatten() for one in LAYERS[1].parameters()]).square().sum(),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_a_penalty_is_told_from_data(name: str) -> None:
    data, *penalties = terms(F.mse_loss(values(), WANTED) + 1e-3 * PENALTIES[name]())
    assert not data["penalty"]
    assert penalties
    assert all(one["penalty"] and one["factor"] == pytest.approx(1e-3) for one in penalties)


def test_data_without_a_network_is_no_penalty() -> None:
    weight = nn.Parameter(torch.randn(SIZE, 1))
    assert not any(one["penalty"] for one in terms(((weight - WANTED) ** 2).mean()))
    assert not any(one["penalty"] for one in terms((weight * WANTED).sum()))


class Halved(torch.autograd.Function):
    """Somebody's own loss."""

    @staticmethod
    def forward(ctx: Any, given: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(given)
        return given.square().mean() / 2

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> Tensor:  # type: ignore[override]
        (given,) = ctx.saved_tensors
        return factor * given / given.numel()


@pytest.mark.parametrize(
    "loss",
    [
        lambda: Halved.apply(values() - WANTED),
        lambda: (values() - WANTED).norm(),
        lambda: values().max(),
        lambda: values().logsumexp((0, 1)),
        lambda: torch.dot(values().flatten(), WANTED.flatten()),
        lambda: F.cross_entropy(kinds(), KIND, reduction="none")[0],
        lambda: Halved.apply(kinds().mean(1)),  # the mean below it is the network's
        lambda: kinds().mean(1).max(),
    ],
)
def test_what_is_not_known_is_said_to_be_so(loss: Callable[[], Tensor]) -> None:
    assert {one["how"] for one in terms(loss())} == {"opaque"}


def test_a_vector_is_no_loss() -> None:
    loss = values().flatten()
    found = Terms(loss)
    loss.backward(torch.ones(SIZE))
    assert [one["how"] for one in found.close()] == ["opaque"]


def test_looking_leaves_nothing_in_the_graph() -> None:
    loss = F.mse_loss(values(), WANTED) + F.cross_entropy(kinds(), KIND)
    found = Terms(loss)
    loss.backward(retain_graph=True)
    before = [one["factor"] for one in found.close()]
    loss.backward()
    assert [one["factor"] for one in found.terms] == before == [1.0, 1.0]


def test_looking_computes_nothing_again_that_was_checkpointed(tmp_path: Path) -> None:
    norm = nn.BatchNorm1d(3)
    calls = []

    def loss(x: Tensor) -> Tensor:
        calls.append(None)
        return F.cross_entropy(LAYERS[0](norm(x)), KIND)

    with observed(tmp_path):
        checkpoint(loss, X, use_reentrant=False).backward()  # type: ignore[no-untyped-call]
    assert len(calls) == 2  # forward, and once more in the backward pass
    assert int(norm.num_batches_tracked) == 2
