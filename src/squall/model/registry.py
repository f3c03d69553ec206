"""From a recipe's model name and arguments to a network.

A name is one of ours or `"package.module:factory"`. Arguments are checked against the factory's own signature before
anything is built, so that a mistyped key is a mistake with its nearest valid name, and all mistakes show at once.
Adding a network is one line of `_FACTORIES`.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from squall.errors import InputError, Mistakes, nearest
from squall.references import NoModuleError, find, is_reference

if TYPE_CHECKING:
    from torch import nn

# name -> "module:factory", the arguments that the name fixes
_FACTORIES: dict[str, tuple[str, dict[str, Any]]] = {
    "acoustic": ("squall.model.acoustic:acoustic", {}),
    "mlp": ("squall.model.mlp:mlp", {}),
    **{f"resnet{depth}": ("squall.model.resnet:cifar", {"depth": depth}) for depth in (8, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}": ("squall.model.resnet:imagenet", {"depth": depth}) for depth in (18, 34, 50, 101, 152)},
}


def names() -> list[str]:
    """The networks that ship, in the order of their families and depths."""
    return list(_FACTORIES)


def build(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Builds a network, initialised from torch's global generator.

    Arguments:
        name: one of `names()` or `"package.module:factory"`, a function or class that returns an `nn.Module`.
        arguments: the factory's keyword arguments (`num_classes`, `width`, ...).

    Raises:
        InputError: unknown name, unknown or missing arguments, values of the wrong kind: all at once, with the valid
            ones; a factory that cannot be imported or returns something else than a module.

    Example:
        >>> sum(p.numel() for p in build("resnet8", {"in_channels": 1}).parameters())
        77754
    """
    own = ":" in name
    reference, fixed = (name, {}) if own else _shipped(name)
    factory = _import(reference)
    _check_arguments(name, factory, fixed, arguments, check_values=not own)
    return _checked_module(name, factory(**fixed, **arguments))


def _shipped(name: str) -> tuple[str, dict[str, Any]]:
    if name not in _FACTORIES:
        near = nearest(name, names())
        raise InputError(
            f"no model is called {name!r}",
            [
                (f"model.name={name}", f"not known. Near: {' '.join(near)}" if near else "not known"),
                ("one of", f'{" ".join(names())}, or "package.module:factory"'),
            ],
        )
    return _FACTORIES[name]


def _import(name: str) -> Callable[..., Any]:
    headline = f"the model {name!r} cannot be imported"
    if not is_reference(name):
        raise InputError(headline, [("rule", 'it is written "package.module:factory"')])
    try:
        module, factory = find(name)
    except NoModuleError as error:
        raise InputError(
            headline,
            [
                ("found", f"no module {error.name!r} on the import path"),
                ("to do", "install it, or start where it lies: PYTHONPATH=. squall ..."),
            ],
        ) from None
    if factory is None:
        function = name.partition(":")[2]
        public = [key for key, value in vars(module).items() if not key.startswith("_") and callable(value)]
        near = nearest(function, public)
        raise InputError(
            headline,
            [("found", f"{module.__name__} has no {function!r}"), ("near", " ".join(near) if near else "nothing")],
        )
    if not callable(factory):
        raise InputError(
            f"the model {name!r} cannot be called", [("found", f"an object of type {type(factory).__name__}")]
        )
    return cast(Callable[..., Any], factory)


def _check_arguments(
    name: str,
    factory: Callable[..., Any],
    fixed: Mapping[str, Any],
    arguments: Mapping[str, Any],
    *,
    check_values: bool,
) -> None:
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # some classes written in C have no signature: the call itself will tell
        return
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    valid = {key: p for key, p in parameters.items() if p.kind in by_name and key not in fixed}
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    mistakes = Mistakes(f"the model {name}", hint=f"its arguments: {' '.join(valid) or 'none'}")
    for key, value in arguments.items():
        if key not in valid and (not takes_any or key in fixed):
            near = nearest(key, list(valid))
            mistakes.add(f"model.{key}={value}", f"no such argument{'. Near: ' + ' '.join(near) if near else ''}")
    for key, parameter in valid.items():
        if parameter.default is inspect.Parameter.empty and key not in arguments:
            mistakes.add(f"model.{key}", f"is missing: {name} needs it")
    if check_values:
        hints = typing.get_type_hints(factory)
        for key in valid.keys() & arguments.keys():
            rule, holds = _KINDS[hints[key]]
            if not holds(arguments[key]):
                mistakes.add(f"model.{key}={arguments[key]!r}", f"must be {rule}")
    mistakes.raise_if_any()


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


# What our own factories annotate -> the rule in words, and whether a value obeys it
_KINDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    int: ("a whole number above 0", _is_count),
    float: ("a number, 0 or more", _is_number),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    Sequence[int]: (
        "a list of whole numbers above 0",
        lambda value: isinstance(value, list | tuple) and all(map(_is_count, value)),
    ),
}


def _checked_module(name: str, made: Any) -> nn.Module:
    from torch import nn

    if not isinstance(made, nn.Module):
        raise InputError(
            f"the model {name!r} is not a module",
            [
                ("found", f"an object of type {type(made).__name__}"),
                ("to do", "let the factory return a torch.nn.Module"),
            ],
        )
    return made
