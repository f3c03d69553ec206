"""Faults that peers have had when a minibatch is computed in parts: not here."""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import squall
from squall.data.order import Order
from squall.records import Record, Stepped
from squall.reduce import TreeReduction
from squall.run import passes
from tests.unit.runs import CLASSES, make_data, make_model, start, summed

VOCABULARY = 7
PAD = -100


def sentences(num_samples: int = 24, longest: int = 9) -> list[dict[str, torch.Tensor]]:
    """Token sequences of different lengths, padded; some of a single token."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for index in range(num_samples):
        length = 1 + index * 5 % longest
        tokens = torch.randint(VOCABULARY, (longest,), generator=generator)
        rows.append({"tokens": tokens, "labels": torch.where(torch.arange(longest) < length, tokens.roll(1), PAD)})
    return rows


def language_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(VOCABULARY, 6), nn.Linear(6, VOCABULARY)).double()


def token_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum over the tokens that count, and how many these are."""
    labels = batch["labels"].flatten()
    loss = F.cross_entropy(model(batch["tokens"]).flatten(0, 1), labels, ignore_index=PAD, reduction="sum")
    return loss, (labels != PAD).sum()


@pytest.mark.parametrize(("worker", "fuse"), [(12, 1), (4, 1), (5, 1), (3, 2), (1, 1)])
def test_accumulation_is_not_the_large_batch_with_varying_lengths(worker: int, fuse: int) -> None:
    """transformers#34191, trl#2175, OpenNMT-py#2209: the mean is over the minibatch's tokens, however it is cut."""
    data, order = sentences(), Order(24, 12, 12, 2, seed=0)
    whole = language_model()
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.5)
    expected_losses = []
    for index in range(order.num_steps):
        rows = [data[i] for i in order.draw(order.step(index), 0).ids.tolist()]
        loss, count = token_loss(whole, {key: torch.stack([row[key] for row in rows]) for key in rows[0]})
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
        expected_losses.append(float(loss.detach() / count))

    seen: list[Record] = []
    run = squall.Run(None, sinks=(seen.append,), epochs=2, global_batch_size=12, worker_batch_size=worker, fuse=fuse)
    model = language_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    run.setup(model, optimizer)
    for step in run.steps(data):
        for batch in step:
            loss, count = token_loss(model, batch)
            step.backward(loss, count=count)
        optimizer.step()
    run.finish()
    for found, expected in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    assert [event.loss for event in seen if isinstance(event, Stepped)] == pytest.approx(expected_losses, rel=1e-12)


def test_2x8_and_16x1_give_different_losses() -> None:
    """axolotl#1100 reported losses of 3.8 and 8 for the same 16 samples."""

    def trained(worker: int) -> tuple[list[float], torch.Tensor]:
        seen: list[Record] = []
        model = make_model().double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        run = start(model, optimizer, global_batch_size=16, worker_batch_size=worker, epochs=3, sinks=(seen.append,))
        for step in run.steps(make_data(40, torch.float64)):
            for inputs, targets in step:
                step.backward(summed(model, inputs, targets))
            optimizer.step()
        run.finish()
        return [event.loss for event in seen if isinstance(event, Stepped)], model.weight.detach()

    losses, weight = trained(16)
    for worker in (8, 2, 1):
        others, other = trained(worker)
        assert others == pytest.approx(losses, rel=1e-12)
        torch.testing.assert_close(other, weight, rtol=1e-12, atol=1e-13)


def test_the_last_partial_window_is_dropped() -> None:
    """mlx-lm#1413, #1544: the rest of an epoch that fills no minibatch is an update like any other."""
    seen: list[Record] = []
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = start(model, optimizer, epochs=2, sinks=(seen.append,))
    weights = []
    for step in run.steps(make_data(19)):
        for inputs, targets in step:
            step.backward(summed(model, inputs, targets))
        optimizer.step()
        weights.append(model.weight.detach().clone())
    result = run.finish()
    assert [event.samples for event in seen if isinstance(event, Stepped)] == [8, 8, 3, 8, 8, 3]
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(weights))
    assert result.values["ledger"]["samples"] == 38


def test_activations_of_all_parts_are_kept_until_the_step() -> None:
    """torchtune#1875's first fix: right numbers, and the memory of the whole minibatch at once."""
    alive: list[weakref.ref[torch.Tensor]] = []
    still: list[int] = []

    class Watched(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            still.append(sum(reference() is not None for reference in alive))
            outputs = torch.tanh(super().forward(inputs))
            alive.append(weakref.ref(outputs))
            return outputs

    model = make_model(Watched(5, 8), nn.Linear(8, CLASSES))
    run = start(model, global_batch_size=16, worker_batch_size=2)
    steps = run.steps(make_data())
    step = next(steps)
    for inputs, targets in step:
        step.backward(summed(model, inputs, targets))
    run.close()
    assert len(still) == 8
    assert max(still) == 0


def test_the_reduction_waits_for_the_whole_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goyal et al. 2017, section 4: no near-linear scaling without overlap; the last layer's bucket goes first."""
    monkeypatch.setattr(passes, "BUCKET_BYTES", 256)
    events: list[str] = []
    ready = TreeReduction.ready

    def noted(self: Any, bucket: int) -> None:
        events.append(f"bucket {bucket}")
        ready(self, bucket)

    model = make_model(nn.Linear(5, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, CLASSES))
    model[0].weight.register_post_accumulate_grad_hook(lambda _: events.append("first layer"))
    model[4].weight.register_post_accumulate_grad_hook(lambda _: events.append("last layer"))
    run = start(model)
    monkeypatch.setattr(TreeReduction, "ready", noted)
    steps = run.steps(make_data())
    for inputs, targets in (step := next(steps)):
        step.backward(summed(model, inputs, targets))
    run.close()
    first_pass, last_pass = events[:2], events[2:]
    assert first_pass == ["last layer", "first layer"]  # nothing travels before the sum of this rank's passes is whole
    assert last_pass.index("bucket 0") < last_pass.index("first layer")


def test_the_loss_is_reduced_before_the_backward_pass() -> None:
    """verl-SpeCo#29: a reduced loss carries no gradient of the other ranks; here the graph ends at the user's loss."""
    model = make_model().double()
    run = start(model)
    steps = run.steps(make_data(dtype=torch.float64))
    step = next(steps)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    for inputs, targets in step:
        seen.append((inputs, targets))
        step.backward(summed(model, inputs, targets))
    inputs, targets = (torch.cat(part) for part in zip(*seen, strict=True))
    twin = nn.Linear(5, CLASSES).double()  # without the run's hooks
    twin.load_state_dict(model.state_dict())
    (expected,) = torch.autograd.grad(F.cross_entropy(twin(inputs), targets), [twin.weight])
    torch.testing.assert_close(model.weight.grad, expected, rtol=1e-12, atol=1e-13)
    run.close()
