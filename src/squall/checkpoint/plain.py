"""Nested state as plain data: a skeleton of JSON, and the tensors that were in it, by name.

`state_dict`s are trees of dictionaries, lists, numbers, texts and tensors. A pickle would take anything, and run code
when it is read. Here every kind of value is written down by name and comes back as what it was: tuples stay tuples,
keys that are numbers stay numbers, floats keep every bit. Whatever has no such form is an error when it is saved, not a
default when it is restored.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from squall.errors import RunError

Tensors = dict[str, torch.Tensor]

_MAPPINGS = (dict, OrderedDict, Counter)


def pack(value: Any, name: str, tensors: Tensors) -> Any:
    """The skeleton of a tree; its tensors are added to `tensors` under names that begin with `name`.

    Raises:
        RunError: names the place of a value that has no plain form.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float) and type(value) in (int, float):
        return value if isinstance(value, int) or math.isfinite(value) else {"float": str(value)}
    if isinstance(value, np.generic) and not isinstance(value.item(), np.generic):  # a long double is its own item
        return pack(value.item(), name, tensors)
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.is_quantized:
            raise _no_form(name, f"a tensor of layout {value.layout}")
        _add(tensors, name, real(value.detach()))
        return {"complex" if value.is_complex() else "tensor": name}
    if isinstance(value, np.ndarray):
        try:
            _add(tensors, name, torch.from_numpy(value.copy(order="C")))
        except (TypeError, ValueError) as error:  # objects, texts, long doubles, bytes in another order
            raise _no_form(name, f"an array of {value.dtype}") from error
        return {"array": name}
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        items = [pack(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
        return {type(value).__name__: items}
    if type(value) in _MAPPINGS:
        for key in value:
            if type(key) not in (str, int):
                raise _no_form(f"{name}.{key}", f"a key of type {type(key).__name__}")
        return {
            "counter" if type(value) is Counter else "dict": [
                [key, pack(item, f"{name}.{key}", tensors)] for key, item in value.items()
            ]
        }
    raise _no_form(name, f"a {type(value).__module__}.{type(value).__qualname__}")


def unpack(skeleton: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The tree that `pack` took apart; an `OrderedDict` comes back as a dictionary of the same order."""
    if not isinstance(skeleton, dict):
        return skeleton
    ((kind, held),) = skeleton.items()
    if kind == "float":
        return float(held)
    if kind == "tensor":
        return tensors[held]
    if kind == "complex":
        return torch.view_as_complex(tensors[held])
    if kind == "array":
        return tensors[held].numpy()
    if kind == "list":
        return [unpack(item, tensors) for item in held]
    if kind == "tuple":
        return tuple(unpack(item, tensors) for item in held)
    found = {key: unpack(item, tensors) for key, item in held}
    return Counter(found) if kind == "counter" else found


def real(tensor: torch.Tensor) -> torch.Tensor:
    """A complex tensor as pairs of real numbers, which files have a form for; others as they are."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _add(tensors: Tensors, name: str, tensor: torch.Tensor) -> None:
    if name in tensors:
        raise RunError(f"two tensors of the state are called {name}", [("rule", "names in a checkpoint are unique")])
    tensors[name] = tensor


def _no_form(name: str, found: str) -> RunError:
    return RunError(
        f"{name} cannot be saved",
        [
            ("found", found),
            ("rule", "a checkpoint holds numbers, texts, tensors, and lists and dictionaries of them: nothing is lost"),
            ("to do", "give a state_dict() of these, or no checkpoints: checkpoint=None"),
        ],
    )
