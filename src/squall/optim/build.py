"""A named update rule for a model: names, arguments and kernels in one table.

A rule is a `torch.optim.Optimizer` class, the user's own included; Squall adds no optimiser interface of its own. What
is checked here is what torch would accept in silence: a momentum given to a rule that has none, a decay that the class
never reads, an option with a letter wrong. Torch's fused kernels are taken where they exist for every parameter: one
pass over memory in place of five, and one kernel a rule, so that its bits are the same wherever it runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from squall.errors import InputError, Mistakes, nearest
from squall.optim.groups import parameter_groups
from squall.optim.lars import LAMB, LARS
from squall.references import NoModuleError, find, is_reference

# Adagrad: no epsilon that shows (Dean et al. 2012 have none), yet 0/0 is 0; the fused kernel has NaN at exactly 0.
_ADAGRAD_EPS = 1e-20
_FIELDS = ("momentum", "nesterov", "betas", "eps")
_OWN = ("lr", "weight_decay", *_FIELDS)


@dataclass(frozen=True)
class _Rule:
    """A class and which of the recipe's fields its constructor takes.

    Attributes:
        make: the optimiser class.
        fused: device types that torch has a fused kernel for.
        defaults: arguments whose default here is not the class's.
    """

    make: Callable[..., Optimizer]
    fused: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def names(self, argument: str) -> bool:
        """Whether the constructor names this argument."""
        return argument in inspect.signature(self.make).parameters

    def takes(self, argument: str) -> bool:
        """Whether the constructor names this argument or takes any."""
        parameters = inspect.signature(self.make).parameters.values()
        return self.names(argument) or any(p.kind is p.VAR_KEYWORD for p in parameters)

    def options(self) -> list[str]:
        """Arguments of the constructor that are no fields of a recipe."""
        named = list(inspect.signature(self.make).parameters.values())[1:]  # the first are the parameters
        return [p.name for p in named if p.name not in _OWN and p.kind is not p.VAR_KEYWORD]


RULES = {
    "adagrad": _Rule(torch.optim.Adagrad, fused=("cpu",), defaults={"eps": _ADAGRAD_EPS}),
    "adam": _Rule(torch.optim.Adam, fused=("cpu", "cuda")),
    "adamw": _Rule(torch.optim.AdamW, fused=("cpu", "cuda")),
    "lamb": _Rule(LAMB),
    "lars": _Rule(LARS),
    "rmsprop": _Rule(torch.optim.RMSprop),
    "sgd": _Rule(torch.optim.SGD, fused=("cpu", "cuda")),
}


def names() -> list[str]:
    """The rules known by name; any other is written "package.module:Class"."""
    return sorted(RULES)


def build(
    model: nn.Module,
    *,
    name: str,
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    betas: Sequence[float] | None = None,
    eps: float | None = None,
    weight_decay: float = 0.0,
    no_weight_decay: Sequence[str] = ("norm",),
    groups: Sequence[Mapping[str, Any]] = (),
    options: Mapping[str, Any] | None = None,
) -> Optimizer:
    """The optimiser for a model's trainable parameters.

    Arguments:
        model: on the device and in the memory format that it is trained in.
        name: one of `names()`, or "package.module:Class" for any `torch.optim.Optimizer`.
        lr: the first rate; `squall.optim.groups.set_rate` gives every update its own.
        momentum: for rules that have one.
        nesterov: look ahead along the momentum; sgd and lars.
        betas: decay rates of both moments; Adam's family. None: the class's default.
        eps: None: the class's default (adagrad: 1e-20, none that shows).
        weight_decay: added to the gradient (sgd, adam, ...) or to the step (adamw, lamb), as the class defines it.
        no_weight_decay: "norm", "bias" and name patterns that are not decayed.
        groups: {match, lr_scale, weight_decay} by name pattern, see `squall.optim.groups`.
        options: further arguments of the class, by its own names.

    Returns:
        The optimiser; its groups carry "name" and "lr_scale".

    Raises:
        InputError: lists every unknown name, argument the rule has no use for, and pattern without a match.

    Example:
        >>> optimizer = build(nn.Linear(4, 2), name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4)
        >>> [(group["name"], group["weight_decay"]) for group in optimizer.param_groups]
        [('all', 0.0001)]
    """
    rule = RULES.get(name) or _own_class(name)
    mistakes = Mistakes("optimizer")
    values = {
        "lr": lr,
        "weight_decay": weight_decay,
        "momentum": momentum,
        "nesterov": nesterov,
        "betas": betas,
        "eps": eps,
    }
    for found, why in (*_range_mistakes(values), *_use_mistakes(name, rule, values), *_option_mistakes(rule, options)):
        mistakes.add(found, why)
    cut: list[dict[str, Any]] = []
    try:
        cut = parameter_groups(model, weight_decay=weight_decay, no_weight_decay=no_weight_decay, groups=groups)
    except InputError as error:
        for row in error.rows:
            mistakes.add(*row)
    if any(group["weight_decay"] for group in cut) and not weight_decay and not rule.takes("weight_decay"):
        mistakes.add("groups: weight_decay", f"{name} has none")
    mistakes.raise_if_any()

    # What the recipe says holds, zeros too: a class whose own default is another never runs by that default.
    always = {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
    arguments: dict[str, Any] = {key: value for key, value in always.items() if value or rule.names(key)}
    arguments |= rule.defaults
    if eps is not None:
        arguments["eps"] = eps
    if betas is not None:
        arguments["betas"] = tuple(betas)
    if rule.fused and _fusable(model, rule.fused):
        arguments["fused"] = True
    arguments |= options or {}
    for group in cut:
        group["lr"] = lr * group["lr_scale"]
    try:
        return rule.make(cut, lr=lr, **arguments)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"optimizer.name={name} refuses its arguments", [("found", str(error))]) from error


def _own_class(name: str) -> _Rule:
    """The class that "package.module:Class" names."""
    if not is_reference(name):
        near = nearest(name, names(), most=1)
        hint = f" Near: {near[0]}" if near else ""
        rule = f'not known. One of: {" ".join(names())}, or "package.module:Class".{hint}'
        raise InputError("1 mistake in optimizer", [(f"optimizer.name={name}", rule)])
    try:
        module, found = find(name)
    except NoModuleError as error:
        raise InputError(
            f"optimizer.name={name}: there is no module {error.name}",
            [("to do", "install it, or start squall where it can be imported from")],
        ) from error
    class_name = name.partition(":")[2]
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        classes = [
            key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, Optimizer)
        ]
        raise InputError(
            f"optimizer.name={name}: {module.__name__} has no optimiser {class_name}",
            [
                ("found", "no such name" if found is None else f"{found!r}, no subclass of torch.optim.Optimizer"),
                ("valid", " ".join(sorted(classes)) or "that module has no optimiser class"),
            ],
        )
    closure = inspect.signature(found.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise InputError(
            f"optimizer.name={name} computes the loss itself, several times an update",
            [("found", f"{class_name}.step needs a closure"), ("valid", " ".join(names()))],
        )
    return _Rule(found)


def _range_mistakes(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key in ("lr", "weight_decay", "eps"):
        value = values[key]
        if value is not None and not 0 <= value < float("inf"):
            yield f"{key}={value}", "a number, 0 or more"
    if not 0 <= values["momentum"] < 1:
        yield f"momentum={values['momentum']}", "a number from 0 to below 1"
    if values["nesterov"] and not values["momentum"]:
        yield "nesterov=true", "looks ahead along a momentum: give optimizer.momentum above 0"
    betas = values["betas"]
    if betas is not None and (len(betas) != 2 or not all(0 <= beta < 1 for beta in betas)):
        yield f"betas={list(betas)}", "two numbers from 0 to below 1"


def _use_mistakes(name: str, rule: _Rule, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    has = " ".join(key for key in (*_FIELDS, "weight_decay") if rule.takes(key))
    for key, value in values.items():
        given = key == "lr" or (value is not None if key in ("betas", "eps") else bool(value))
        if given and not rule.takes(key):
            yield f"{key}={value}", f"{name} has none. It takes: {has}"


def _option_mistakes(rule: _Rule, options: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    for key in options or {}:
        if key in _OWN:
            yield f"options.{key}", f"is a field of its own: optimizer.{key}" if key != "lr" else "is lr.base"
        elif not rule.takes(key):
            near = nearest(key, rule.options())
            rest = f"Near: {', '.join(near)}" if near else f"One of: {' '.join(rule.options())}"
            yield f"options.{key}", f"no such argument. {rest}"


def _fusable(model: nn.Module, devices: Sequence[str]) -> bool:
    """Whether the fused kernel takes every parameter: right device, real floating point, dense gradients."""
    sparse = any(getattr(module, "sparse", False) is True for module in model.modules())
    return not sparse and all(
        parameter.device.type in devices and parameter.is_floating_point()
        for parameter in model.parameters()
        if parameter.requires_grad
    )
