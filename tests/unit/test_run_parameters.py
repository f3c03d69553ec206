"""Parameters and buffers of every kind keep the meaning that they have in plain PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import squall
from squall.data.order import Order
from squall.errors import RunError
from squall.model import weights
from tests.unit.runs import CLASSES, FIELDS, make_data, make_model, start, summed, train


def reference(model: nn.Module, data: Any, optimizer: torch.optim.Optimizer) -> nn.Module:
    """The same training without Squall: gradients of the passes accumulated, divided by the minibatch's samples."""
    order = Order(len(data), FIELDS["global_batch_size"], FIELDS["worker_batch_size"], FIELDS["epochs"], seed=0)
    for index in range(order.num_steps):
        plan = order.step(index)
        optimizer.zero_grad()
        for leaf in range(plan.num_passes):
            ids = order.draw(plan, leaf).ids.tolist()
            inputs = torch.stack([data[i][0] for i in ids])
            (summed(model, inputs, torch.tensor([data[i][1] for i in ids])) / plan.num_samples).backward()
        optimizer.step()
    return model


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)


def assert_as_plain(make: Any, data: Any, **tolerance: float) -> nn.Module:
    """Trains twice, plainly and in a run; all parameters must agree."""
    plain, mine = make(), make()
    reference(plain, data, sgd(plain))
    train(mine, data=data, optimizer=sgd(mine))
    for (name, expected), found in zip(plain.named_parameters(), mine.parameters(), strict=True):
        torch.testing.assert_close(found, expected, msg=lambda text, name=name: f"{name}: {text}", **tolerance)
    return mine


class Tied(nn.Module):
    """The output layer is the embedding: one parameter under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, CLASSES)
        self.outer = nn.Linear(CLASSES, CLASSES, bias=False)
        self.again = nn.Linear(CLASSES, CLASSES, bias=False)
        self.again.weight = self.outer.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.again(torch.tanh(self.outer(self.inner(inputs))))


class Partial(nn.Module):
    """One part is never used, one is frozen, one only every other call."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.used = nn.Linear(5, CLASSES)
        self.unused = nn.Linear(4, 4)
        self.frozen = nn.Linear(CLASSES, CLASSES).requires_grad_(False)
        self.sometimes = nn.Parameter(torch.ones(CLASSES))
        self.calls = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        outputs = self.frozen(self.used(inputs))
        return outputs * self.sometimes if self.calls % 2 else outputs


class Mixed(nn.Module):
    """Layers of different precision, joined by hand."""

    def __init__(self, *dtypes: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(2)
        sizes = [5, 4, CLASSES]
        self.layers = nn.ModuleList(
            nn.Linear(a, b, dtype=dtype) for a, b, dtype in zip(sizes[:-1], sizes[1:], dtypes, strict=True)
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            inputs = layer(inputs.to(layer.weight.dtype))
        return inputs


class Counted(nn.Module):
    """Buffers of every kind around a linear layer."""

    def __init__(self, replaced: bool = False, uneven: bool = False) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.layer = nn.Linear(5, CLASSES)
        self.replaced, self.uneven = replaced, uneven
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("mean", torch.zeros(5))
        self.register_buffer("wide", torch.zeros(5, dtype=torch.float64))
        self.register_buffer("constant", torch.tensor([0.1, 1e-30, 3e7, -0.0, -torch.inf]))
        self.register_buffer("exact", torch.tensor([0.1, -0.0, -torch.inf], dtype=torch.float64))
        self.register_buffer("short", torch.tensor([0.1, -0.0], dtype=torch.bfloat16))
        self.register_buffer("scratch", torch.ones(2), persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            value = 0.9 * self.mean + 0.1 * inputs.detach().mean(0)
            if self.replaced:
                self.mean = value
            else:
                self.mean.copy_(value)
            self.wide += inputs.detach().mean(0).double()
            self.calls += int(inputs.sum() > 0) if self.uneven else 1
        return self.layer(inputs)


class Adding(nn.Module):
    """Adds to a buffer, in place or by putting a new tensor there."""

    def __init__(self, total: torch.Tensor, by: float, replaces: bool) -> None:
        super().__init__()
        self.register_buffer("total", total)
        self.by, self.replaces = by, replaces

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        by = torch.tensor(self.by).to(self.total.dtype)
        if self.replaces:
            self.total = self.total + by
        else:
            self.total += by
        return inputs


class Sharing(nn.Module):
    """Two modules hold one buffer: what one adds, the other sees."""

    def __init__(self, dtype: torch.dtype, replaces: bool) -> None:
        super().__init__()
        total = torch.ones(2, dtype=dtype)
        self.first, self.second = Adding(total, 2, False), Adding(total, 3, replaces)
        self.layer = nn.Linear(5, CLASSES)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(self.second(self.first(inputs)))


def test_tied_parameters_get_both_gradients_and_one_update() -> None:
    def make() -> nn.Module:
        torch.manual_seed(2)
        return Tied().double()

    model = assert_as_plain(make, make_data(dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert model.again.weight is model.outer.weight


def test_tied_parameters_count_once_in_the_hash_and_in_the_vector() -> None:
    run = start(Tied())
    assert run.stepper is not None
    assert len(run.stepper.parameters) == 3
    run.close()


def test_unused_frozen_and_sometimes_used_parameters_are_as_in_torch_optim() -> None:
    """A zero in a flat vector would still be decayed (1.0 -> 0.99); DDP hangs on unused parameters."""
    fresh = Partial()
    model = assert_as_plain(Partial, make_data(), rtol=1e-5, atol=1e-6)
    assert torch.equal(model.unused.weight, fresh.unused.weight)
    assert torch.equal(model.frozen.weight, fresh.frozen.weight)
    assert not torch.equal(model.sometimes, fresh.sometimes)
    assert model.unused.weight.grad is None


def test_a_parameter_used_by_one_worker_of_the_minibatch_gets_that_workers_gradient() -> None:
    model = Partial()
    run = start(model)
    steps = run.steps(make_data())
    step = next(steps)
    for inputs, targets in step:
        step.backward(summed(model, inputs, targets))
    found = model.sometimes.grad
    assert found is not None
    plain = Partial()
    order = Order(16, 8, 4, 1, seed=0)
    ids = order.draw(order.step(0), 0).ids.tolist()
    data = make_data()
    loss = summed(plain, torch.stack([data[i][0] for i in ids]), torch.tensor([data[i][1] for i in ids]))
    (gradient,) = torch.autograd.grad(loss / 8, [plain.sometimes])
    torch.testing.assert_close(found, gradient)
    run.close()


@pytest.mark.parametrize("dtypes", [(torch.float64, torch.float32), (torch.float32, torch.float64)])
def test_a_float64_parameter_beside_float32_keeps_its_precision(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    model = assert_as_plain(lambda: Mixed(*dtypes), make_data(), rtol=1e-5, atol=1e-6)
    assert [p.dtype for p in model.parameters()] == [dtypes[0]] * 2 + [dtypes[1]] * 2


def test_float64_parameters_are_summed_in_float64() -> None:
    model = lambda: make_model(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, CLASSES)).double()  # noqa: E731
    assert_as_plain(model, make_data(dtype=torch.float64), rtol=1e-13, atol=1e-14)


def test_bfloat16_parameters_are_summed_in_float32() -> None:
    """The sum of bfloat16 gradients in bfloat16 would lose the small ones."""
    model = Mixed(torch.bfloat16, torch.float32)
    run = start(model)
    steps = run.steps(make_data())
    step = next(steps)
    gradients = []
    for inputs, targets in step:
        twin = Mixed(torch.bfloat16, torch.float32)
        gradients.append(torch.autograd.grad(summed(twin, inputs, targets), list(twin.parameters())))
        step.backward(summed(model, inputs, targets))
    for index, parameter in enumerate(model.parameters()):
        expected = sum(gradient[index].float() for gradient in gradients) / 8
        assert parameter.grad is not None
        assert parameter.grad.dtype == parameter.dtype
        assert torch.equal(parameter.grad, expected.to(parameter.dtype))
    run.close()


@pytest.mark.parametrize("replaced", [False, True])
def test_buffers_are_counted_once_a_step_and_averaged_over_the_workers(replaced: bool) -> None:
    """k workers in one process must not make k updates of running statistics."""
    model = Counted(replaced)
    data = make_data()
    train(model, data=data)
    order = Order(16, 8, 4, 1, seed=0)
    mean, wide = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    for index in range(order.num_steps):
        plan = order.step(index)
        rows = torch.stack([data[i][0] for leaf in range(2) for i in order.draw(plan, leaf).ids.tolist()]).double()
        mean = 0.9 * mean + 0.1 * rows.mean(0)
        wide = wide + rows.mean(0)
    torch.testing.assert_close(model.mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.wide, wide, rtol=1e-5, atol=1e-6)
    assert int(model.calls) == 2
    assert model.wide.dtype == torch.float64
    assert model.calls.dtype == torch.int64


@pytest.mark.parametrize("replaces", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.int32])
def test_a_buffer_of_two_modules_stays_one(dtype: torch.dtype, replaces: bool) -> None:
    """Each module its own copy would end at 5 and at 7 instead of 11."""
    model = Sharing(dtype, replaces)
    assert train(model, data=make_data(16)).values["steps"] == 2
    first, second = model.first.total, model.second.total
    assert first is second
    assert first.tolist() == [11, 11]
    assert first.dtype == dtype


def test_constant_buffers_keep_every_bit() -> None:
    """A mean of values would round (3 x 0.1 / 3), -0.0 would become 0.0, a mask's -inf no number."""
    model, fresh = Counted(), Counted()
    train(model, data=make_data(22), worker_batch_size=2)
    assert torch.equal(model.constant.view(torch.int32), fresh.constant.view(torch.int32))
    assert torch.equal(model.exact.view(torch.int64), fresh.exact.view(torch.int64))
    assert torch.equal(model.short.view(torch.int16), fresh.short.view(torch.int16))
    assert torch.equal(model.scratch, fresh.scratch)
    assert torch.equal(model.flags, fresh.flags)
    assert model.flags.dtype == torch.bool


def test_integer_buffers_that_workers_change_differently_are_named() -> None:
    rows = [(torch.full((5,), 1.0 if i < 13 else -1.0), i % CLASSES) for i in range(16)]
    with pytest.raises(RunError, match="the integer buffer calls changes differently in two passes"):
        train(Counted(uneven=True), data=rows, worker_batch_size=1)


def test_evaluation_and_its_buffers_do_not_touch_training() -> None:
    """A pass in evaluation mode between two steps leaves weights, statistics and random numbers alone."""

    def trained(evaluates: bool) -> str:
        model = make_model(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, CLASSES))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run = start(model, optimizer)
        for step in run.steps(make_data()):
            for inputs, targets in step:
                step.backward(summed(model, inputs, targets))
            optimizer.step()
            if evaluates:
                run.evaluate(model, make_data(10), lambda scores, labels: scores.argmax(1) == labels)
        digest = run.finish().values["weights_sha256"]
        return f"{digest} {weights.sha256(model.named_buffers())}"

    assert trained(True) == trained(False)


def test_a_model_that_kept_its_gradients_starts_without_them() -> None:
    clean, dirty = make_model(), make_model()
    F.cross_entropy(dirty(torch.ones(1, 5)), torch.tensor([1])).backward()
    assert train(clean).values["weights_sha256"] == train(dirty).values["weights_sha256"]


def test_zero_grad_of_either_kind_and_none_at_all_give_the_same() -> None:
    """optimizer.zero_grad() sets .grad to None, zero_grad(set_to_none=False) writes zeros into the flat vector."""

    def trained(kind: str) -> str:
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        run = squall.Run(None, **FIELDS)
        run.setup(model, optimizer)
        for step in run.steps(make_data(24)):
            for inputs, targets in step:
                step.backward(summed(model, inputs, targets))
            optimizer.step()
            if kind != "none":
                optimizer.zero_grad(set_to_none=kind == "to none")
        return str(run.finish().values["weights_sha256"])

    assert trained("to none") == trained("zeros") == trained("none")
