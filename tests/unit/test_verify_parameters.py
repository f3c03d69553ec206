"""What this rank alone puts into an update: its gradients summed since `.grad` was last emptied, however it was."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.unit.observing import Observed, observed


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Observed]:
    with observed(tmp_path) as one:
        yield one


class Net(nn.Module):
    """Two layers; the inner one may be checkpointed."""

    def __init__(self, around: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(4, 4), nn.Linear(4, 1)
        self.around = around

    def forward(self, x: Tensor) -> Tensor:
        x = self.around(self.inner, x) if self.around else self.inner(x)
        return self.last(torch.tanh(x))  # type: ignore[no-any-return]


def batches(count: int = 8) -> list[Tensor]:
    made = torch.Generator().manual_seed(3)
    return [torch.randn(5, 4, generator=made, requires_grad=True) for _ in range(count)]


def same_as_alone(watched: Observed, model: nn.Module, event: dict[str, Any], given: list[Tensor]) -> None:
    """The sums of an update are the gradients of the same batches in a network of its own."""
    alone = copy.deepcopy(model)
    for parameter in alone.parameters():
        parameter.grad = None
    for x in given:
        alone(x).square().mean().backward()
    for parameter, mine in zip(model.parameters(), alone.parameters(), strict=True):
        index = watched.parameters.index(parameter)
        assert mine.grad is not None
        numpy.testing.assert_allclose(
            watched.array(event, f"local.{index}"), mine.grad.flatten().numpy(), rtol=1e-5, atol=1e-7
        )


EMPTIED: dict[str, Callable[[nn.Module, torch.optim.Optimizer], Any]] = {
    "None": lambda model, optimizer: [setattr(one, "grad", None) for one in model.parameters()],
    "zero_": lambda model, optimizer: [one.grad.zero_() for one in model.parameters() if one.grad is not None],
    "zero_grad": lambda model, optimizer: optimizer.zero_grad(),
    "zero_grad, kept": lambda model, optimizer: optimizer.zero_grad(set_to_none=False),
    "model.zero_grad": lambda model, optimizer: model.zero_grad(),
    "model.zero_grad, kept": lambda model, optimizer: model.zero_grad(set_to_none=False),
    "new zeros": lambda model, optimizer: [setattr(one, "grad", torch.zeros_like(one)) for one in model.parameters()],
    "times zero": lambda model, optimizer: [one.grad.mul_(0) for one in model.parameters() if one.grad is not None],
}


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("how", EMPTIED)
def test_a_sum_begins_anew_however_gradients_are_emptied(watched: Observed, how: str, window: int) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    given = batches(3 * window)
    for count, x in enumerate(given, 1):
        model(x).square().mean().backward()
        if count % window == 0:
            optimizer.step()
            EMPTIED[how](model, optimizer)
    backwards = [event["n"] for event in watched.events("backward")]
    steps = watched.events("step")
    for place, event in enumerate(steps):
        mine = slice(place * window, (place + 1) * window)
        assert {tuple(one) for one in event["from"].values()} == {tuple(backwards[mine])}
        with torch.random.fork_rng():
            watched.recorder.observing = False
            same_as_alone(watched, model, event, given[mine])
            watched.recorder.observing = True
    assert len(steps) == 3
    assert not any("dropped" in event for event in watched.events("backward"))


@pytest.mark.parametrize("how", EMPTIED)
def test_what_is_emptied_without_an_update_is_noted(watched: Observed, how: str) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first, second, third = batches(3)
    model(first).square().mean().backward()
    optimizer.step()
    EMPTIED[how](model, optimizer)
    model(second).square().mean().backward()
    EMPTIED[how](model, optimizer)
    model(third).square().mean().backward()
    optimizer.step()
    _, lost, after = watched.events("backward")
    assert {tuple(one) for one in after["dropped"].values()} == {(lost["n"],)}
    assert "dropped" not in lost
    assert {tuple(one) for one in watched.events("step")[1]["from"].values()} == {(after["n"],)}


def test_gradients_that_are_zero_were_not_emptied(watched: Observed) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first, second = batches(2)
    (0.0 * model(first).square().mean()).backward()
    model(second).square().mean().backward()
    optimizer.step()
    one, other = watched.events("backward")
    assert {tuple(found) for found in watched.events("step")[0]["from"].values()} == {(one["n"], other["n"])}
    assert "dropped" not in other


def test_a_row_that_no_batch_needs_loses_nothing(watched: Observed) -> None:
    table = nn.Embedding(4, 2)
    dead = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([*table.parameters(), dead], lr=0.1)
    for _ in range(2):
        for _ in range(2):
            (table(torch.tensor([0, 1])).sum() + (0 * dead).sum()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    assert not any("dropped" in event for event in watched.events("backward"))


@pytest.mark.parametrize("around", [None, "reentrant", "not reentrant"])
def test_checkpointed_layers_have_the_same_sums(watched: Observed, around: str | None) -> None:
    def again(layer: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(layer, x, use_reentrant=around == "reentrant")  # type: ignore[no-any-return, no-untyped-call]

    model = Net(again if around else None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    given = batches(2)
    for x in given:
        model(x).square().mean().backward()
    optimizer.step()
    (event,) = watched.events("step")
    assert {len(one) for one in event["from"].values()} == {2}
    watched.recorder.observing = False
    same_as_alone(watched, model, event, given)


def test_one_parameter_in_several_places_is_one(watched: Observed) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.out = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
            self.out.weight = self.words.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.words(x))  # type: ignore[no-any-return]

    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    model(torch.tensor([1, 2])).square().mean().backward()
    optimizer.step()
    (event,) = watched.events("step")
    assert list(event["from"]) == ["0"]
    assert model.words.weight.grad is not None
    numpy.testing.assert_allclose(watched.array(event, "local.0"), model.words.weight.grad.flatten().numpy(), rtol=1e-6)
    assert [one["name"] for one in watched.parameters.table()] == ["words.weight"]


def test_several_passes_through_one_layer_in_one_backward_pass(watched: Observed) -> None:
    layer = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    x = batches(1)[0]
    for _ in range(2):
        x = checkpoint(layer, x, use_reentrant=True)  # type: ignore[no-untyped-call]
    x.square().mean().backward()
    optimizer.step()
    (event,) = watched.events("step")
    assert layer.weight.grad is not None
    numpy.testing.assert_allclose(watched.array(event, "local.0"), layer.weight.grad.flatten().numpy(), rtol=1e-5)
    assert event["from"]["0"] == [watched.events("backward")[0]["n"]]


def test_a_frozen_layer_that_thaws_is_watched_from_then_on(watched: Observed) -> None:
    model = Net()
    model.inner.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x in batches(2):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        model.inner.requires_grad_(True)
    assert [sorted(event["from"]) for event in watched.events("step")] == [["2", "3"], ["0", "1", "2", "3"]]


def test_sparse_gradients_add_up(watched: Observed) -> None:
    table = nn.Embedding(9, 2, sparse=True)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
    for _ in range(2):
        for _ in range(2):
            table(torch.tensor([1, 2, 2])).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    for event in watched.events("step"):
        numpy.testing.assert_array_equal(watched.array(event, "local.0"), watched.array(event, "grad.0"))
        assert watched.array(event, "local.0").sum() == 12.0
        assert len(event["from"]["0"]) == 2


def test_a_layer_without_a_shape_yet_is_met_when_it_has_one(watched: Observed) -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d(affine=False), nn.Linear(3, 1))
    model(torch.randn(2, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(2, 5)).sum().backward()
    optimizer.step()
    assert {one["name"] for one in watched.parameters.table()} == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert len(watched.events("step")[0]["from"]) == 4


def test_complex_parameters_are_kept_by_their_real_halves(watched: Observed) -> None:
    weight = nn.Parameter(torch.randn(3, dtype=torch.complex64))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        weight.abs().sum().backward()
        optimizer.step()
    event = watched.events("step")[1]
    numpy.testing.assert_array_equal(watched.array(event, "local.0"), watched.array(event, "grad.0"))


def test_watched_parameters_are_copied_and_saved_as_ever(watched: Observed) -> None:
    model, plain = Net(), torch.randn(3, requires_grad=True)
    optimizer = torch.optim.Adam([*model.parameters(), plain], lr=0.1)
    for x in batches(2):
        (model(x).square().mean() + plain.sum()).backward()
        optimizer.step()
    for one in (model.inner, model.state_dict(), list(model.parameters()), plain, optimizer, optimizer.state_dict()):
        pickle.loads(pickle.dumps(one))
        torch.save(one, io.BytesIO())
        copy.deepcopy(one)
    twin = copy.deepcopy(model)
    notes = len(watched.events("backward"))
    watched.recorder.observing = False
    twin(batches(1)[0]).sum().backward()
    assert len(watched.events("backward")) == notes
