"""One table over all rules: each has a slow textbook twin, and each passes the same suite.

A new rule is one row of `RULES`; a property that every rule must have is one test below it.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from squall.errors import InputError
from squall.optim.build import build, names
from squall.optim.groups import set_rate

Array = npt.NDArray[np.float64]
Twin = Callable[[Array, Array, dict[str, Any], float, float], Array]  # weights, gradient, state, rate, decay -> weights


def sgd(momentum: float, nesterov: bool) -> Twin:
    def step(w: Array, g: Array, s: dict[str, Any], rate: float, decay: float) -> Array:
        d = g + decay * w
        s["u"] = momentum * s.get("u", 0) + d
        return w - rate * (d + momentum * s["u"] if nesterov else s["u"])

    return step


def adam(decoupled: bool, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Twin:
    def step(w: Array, g: Array, s: dict[str, Any], rate: float, decay: float) -> Array:
        if decoupled:
            w = w - rate * decay * w
        else:
            g = g + decay * w
        t = s["t"] = s.get("t", 0) + 1
        s["m"] = beta1 * s.get("m", 0) + (1 - beta1) * g
        s["v"] = beta2 * s.get("v", 0) + (1 - beta2) * g**2
        return w - rate * (s["m"] / (1 - beta1**t)) / (np.sqrt(s["v"] / (1 - beta2**t)) + eps)

    return step


def adagrad(w: Array, g: Array, s: dict[str, Any], rate: float, decay: float) -> Array:
    g = g + decay * w
    s["sum"] = s.get("sum", 0) + g**2
    return w - rate * g / np.sqrt(s["sum"])


def rmsprop(w: Array, g: Array, s: dict[str, Any], rate: float, decay: float) -> Array:
    g = g + decay * w
    s["v"] = 0.99 * s.get("v", 0) + 0.01 * g**2
    s["u"] = 0.9 * s.get("u", 0) + g / (np.sqrt(s["v"]) + 1e-8)
    return w - rate * s["u"]


def length(x: Array) -> float:
    return math.sqrt(math.fsum(float(v) ** 2 for v in x.ravel()))


def lars(momentum: float, nesterov: bool) -> Twin:
    plain = sgd(momentum, nesterov)

    def step(w: Array, g: Array, s: dict[str, Any], rate: float, decay: float) -> Array:
        ratio = 0.001 * length(w) / (length(g) + decay * length(w)) if w.ndim > 1 else 1.0
        return w + plain(0 * w, ratio * (g + decay * w), s, rate, 0.0)

    return step


def lamb(w: Array, g: Array, s: dict[str, Any], rate: float, decay: float) -> Array:
    t = s["t"] = s.get("t", 0) + 1
    s["m"] = 0.9 * s.get("m", 0) + 0.1 * g
    s["v"] = 0.999 * s.get("v", 0) + 0.001 * g**2
    r = (s["m"] / (1 - 0.9**t)) / (np.sqrt(s["v"] / (1 - 0.999**t)) + 1e-6) + decay * w
    return w - rate * (length(w) / length(r) if w.ndim > 1 else 1.0) * r


@dataclass(frozen=True)
class Case:
    name: str
    rate: float
    twin: Twin
    fields: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.name, *self.fields])


RULES = [
    Case("sgd", 0.1, sgd(0.0, False)),
    Case("sgd", 0.05, sgd(0.9, False), {"momentum": 0.9}),
    Case("sgd", 0.05, sgd(0.9, True), {"momentum": 0.9, "nesterov": True}),
    Case("adam", 0.05, adam(decoupled=False)),
    Case("adamw", 0.05, adam(decoupled=True)),
    Case("adamw", 0.05, adam(True, 0.8, 0.95, 1e-6), {"betas": [0.8, 0.95], "eps": 1e-6}),
    Case("adagrad", 0.5, adagrad),
    Case("rmsprop", 0.01, rmsprop, {"momentum": 0.9}),
    Case("lars", 100.0, lars(0.0, False)),
    Case("lars", 20.0, lars(0.9, False), {"momentum": 0.9}),
    Case("lars", 20.0, lars(0.9, True), {"momentum": 0.9, "nesterov": True}),
    Case("lamb", 0.05, lamb),
]
every_rule = pytest.mark.parametrize("case", RULES, ids=str)


def net(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3)).to(dtype)


def make(case: Case, model: nn.Module, **more: Any) -> torch.optim.Optimizer:
    return build(model, **{"name": case.name, "lr": case.rate, "weight_decay": 0.01} | case.fields | more)


def give_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.grad = gradient.to(parameter.dtype)


def state_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value.clone() for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_the_table_covers_every_rule() -> None:
    assert sorted({case.name for case in RULES}) == names()


@every_rule
def test_ten_steps_on_a_moving_rate_are_the_textbooks(case: Case) -> None:
    model = net()
    optimizer = make(case, model, groups=[{"match": "2", "lr_scale": 3.0}])
    twins = {name: value.numpy() for name, value in weights(model).items()}
    states: dict[str, dict[str, Any]] = {name: {} for name in twins}
    for step in range(10):
        give_gradients(model, step)
        rate = case.rate * (1 + step) / 10
        set_rate(optimizer, rate)
        optimizer.step()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            scale, decay = (3.0 if name.startswith("2") else 1.0), (0.0 if name.startswith("1") else 0.01)
            twins[name] = case.twin(twins[name], parameter.grad.numpy(), states[name], scale * rate, decay)
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), twins[name], rtol=1e-9, atol=1e-12)


@every_rule
def test_finds_the_minimum_of_a_parabola(case: Case) -> None:
    model = nn.Linear(2, 2, bias=False).double()
    target = torch.tensor([[1.0, -1.0], [2.0, 0.5]], dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-1.0, 2.0], [1.0, 1.0]]))
    optimizer = make(case, model, weight_decay=0.0)
    for step in range(800):
        optimizer.zero_grad()
        ((model.weight - target) ** 2).sum().backward()
        set_rate(optimizer, case.rate * (1 - step / 800))
        optimizer.step()
    torch.testing.assert_close(model.weight.detach(), target, atol=3e-2, rtol=0)


@every_rule
def test_a_parameter_without_a_gradient_is_left_alone_not_decayed(case: Case) -> None:
    model = net()
    optimizer, before = make(case, model), weights(model)
    for step in range(3):
        give_gradients(model, step)
        model[0].weight.grad = None
        optimizer.step()
    assert torch.equal(model[0].weight, before["0.weight"])
    assert not torch.equal(model[2].weight, before["2.weight"])


@every_rule
def test_frozen_parameters_are_left_out(case: Case) -> None:
    model = net()
    model[0].requires_grad_(False)
    held = {id(p) for group in make(case, model).param_groups for p in group["params"]}
    assert held == {id(p) for name, p in model.named_parameters() if not name.startswith("0")}


@every_rule
def test_rate_zero_changes_no_weight(case: Case) -> None:
    model = net()
    optimizer, before = make(case, model), weights(model)
    give_gradients(model, 0)
    set_rate(optimizer, 0.0)
    optimizer.step()
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


@every_rule
def test_the_state_is_free_of_the_rate(case: Case) -> None:
    """mxnet#15533: momentum that keeps the old rate. The weights are put back each time: only the rates differ."""
    states = []
    for factors in ([1, 1, 1], [1, 30, 0.01]):
        model = net()
        optimizer, before = make(case, model), weights(model)
        for step, factor in enumerate(factors):
            give_gradients(model, step)
            set_rate(optimizer, case.rate * factor)
            optimizer.step()
            model.load_state_dict(before)
        states.append(state_of(optimizer))
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))


@every_rule
def test_a_restored_state_goes_on_bit_for_bit_and_brings_no_rate_along(case: Case) -> None:
    """pytorch-gradual-warmup-lr#27, yolov5#292: what is loaded drives a dead optimiser, or an old rate."""
    model = net(torch.float32)
    optimizer = make(case, model)
    for step in range(3):
        give_gradients(model, step)
        set_rate(optimizer, 7.0)  # the rate that is stored
        optimizer.step()
    copied = copy.deepcopy(model)
    restored = make(case, copied)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(3, 6):
        for each, rule in ((model, optimizer), (copied, restored)):
            give_gradients(each, step)
            set_rate(rule, case.rate)
            rule.step()
    assert {group["lr"] for group in restored.param_groups} == {case.rate}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), copied.parameters(), strict=True))


@every_rule
def test_the_same_run_gives_the_same_bits_twice(case: Case) -> None:
    results = []
    for _ in range(2):
        model = net(torch.float32)
        optimizer = make(case, model)
        for step in range(4):
            give_gradients(model, step)
            optimizer.step()
        results.append(b"".join(p.detach().numpy().tobytes() for p in model.parameters()))
    assert results[0] == results[1]


def test_adagrad_survives_gradients_of_zero_and_of_nearly_zero() -> None:
    """eps 0 gives NaN in the fused kernel, 1e-30 explodes; pixels that are always 0 have gradient 0."""
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    optimizer = build(model, name="adagrad", lr=1.0)
    assert optimizer.param_groups[0]["fused"] is True
    model.weight.grad = torch.tensor([[0.0, 1e-23, 1e-15, 0.1]])
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), -torch.tensor([[0.0, 1e-3, 1.0, 1.0]]), rtol=1e-2, atol=1e-9)


class TestBuild:
    @pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "adagrad"])
    def test_fused_where_torch_has_the_kernel(self, name: str) -> None:
        assert build(net(), name=name, lr=0.1).defaults["fused"] is True

    def test_not_fused_where_gradients_are_sparse_or_the_device_has_no_kernel(self) -> None:
        sparse = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 2))
        optimizer = build(sparse, name="sgd", lr=0.1)
        sparse(torch.tensor([1, 2])).sum().backward()
        before = weights(sparse)
        optimizer.step()
        changed = (sparse[0].weight != before["0.weight"]).any(dim=1)
        assert changed.nonzero().ravel().tolist() == [1, 2]
        assert not build(net().to("meta"), name="adamw", lr=0.1).defaults["fused"]

    def test_fused_and_plain_kernels_agree(self) -> None:
        models = []
        for fused in (True, False):
            model = net()
            optimizer = build(
                model, name="sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01, options={"fused": fused}
            )
            for step in range(5):
                give_gradients(model, step)
                optimizer.step()
            models.append(model)
        for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)

    def test_any_torch_optimizer_by_path(self) -> None:
        optimizer = build(
            net(),
            name="torch.optim:NAdam",
            lr=0.1,
            betas=[0.8, 0.9],
            weight_decay=0.1,
            options={"momentum_decay": 0.01},
        )
        assert type(optimizer) is torch.optim.NAdam
        assert optimizer.defaults["betas"] == (0.8, 0.9)
        assert optimizer.defaults["momentum_decay"] == 0.01
        assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]

    def test_the_recipe_holds_against_a_class_own_default(self) -> None:
        """LARS's own momentum is 0.9; a recipe that says 0 gets 0."""
        assert build(net(), name="lars", lr=0.1).defaults["momentum"] == 0.0
        assert build(net(), name="torch.optim:AdamW", lr=0.1).defaults["weight_decay"] == 0.0

    @pytest.mark.parametrize(
        ("arguments", "parts"),
        [
            ({"name": "adamx"}, ["not known. One of: adagrad adam adamw lamb lars rmsprop sgd", "Near: adam"]),
            ({"name": ":SGD"}, ["not known"]),
            ({"name": "no_such_package:SGD"}, ["no module no_such_package", "install it"]),
            ({"name": "torch.optim:Linear"}, ["no optimiser Linear", "AdamW"]),
            ({"name": "torch.nn:Linear"}, ["no subclass of torch.optim.Optimizer"]),
            ({"name": "torch.optim:LBFGS"}, ["needs a closure"]),
            ({"name": "adamw", "momentum": 0.9}, ["momentum=0.9", "adamw has none. It takes: betas eps weight_decay"]),
            ({"name": "sgd", "betas": [0.9, 0.99]}, ["sgd has none", "momentum nesterov"]),
            ({"name": "sgd", "nesterov": True}, ["above 0"]),
            ({"name": "adam", "betas": [0.9]}, ["two numbers"]),
            ({"name": "sgd", "momentum": 1.0}, ["below 1"]),
            ({"name": "adamw", "options": {"amsgrid": True}}, ["options.amsgrid", "Near: amsgrad"]),
            ({"name": "sgd", "options": {"momentum": 0.9}}, ["optimizer.momentum"]),
            ({"name": "sgd", "lr": float("nan")}, ["lr=nan"]),
            ({"name": "torch.optim:Rprop", "weight_decay": 0.1}, ["weight_decay=0.1", "has none"]),
            ({"name": "torch.optim:Rprop", "groups": [{"match": "0", "weight_decay": 0.1}]}, ["has none"]),
            ({"name": "adamw", "options": {"foreach": True}}, ["refuses its arguments", "cannot be `True` together"]),
            ({"name": "rmsprop", "options": {"alpha": -3.0}}, ["refuses its arguments", "alpha"]),
        ],
    )
    def test_mistakes_are_named(self, arguments: dict[str, Any], parts: list[str]) -> None:
        with pytest.raises(InputError) as caught:
            build(net(), **{"lr": 0.1} | arguments)
        assert [part for part in parts if part not in caught.value.text()] == []

    def test_all_mistakes_at_once(self) -> None:
        with pytest.raises(InputError) as caught:
            build(
                net(), name="adamw", lr=-1, momentum=0.9, no_weight_decay=["nrm"], groups=[{"match": "head.*"}],
                options={"x": 1},
            )  # fmt: skip
        assert "5 mistakes" in caught.value.text()
