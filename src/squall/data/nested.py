"""Batches and outputs as people nest them: tensors in lists, tuples, named tuples and mappings.

Kernels may take another path, and give other bits, on memory that does not start at a multiple of 64 bytes, where
torch's own allocations start: NumPy's arrays and slices are copied on the way to a device.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping
from functools import partial
from typing import Any

import numpy as np
import torch

_ALIGNMENT = 64  # bytes


def move(batch: Any, device: torch.device) -> Any:
    """Brings a batch to a device (to a GPU through pinned memory, without waiting), its tensors aligned on a CPU.

    Anything else with a method `to`, such as a graph batch, is asked to move itself; the rest stays as it is.
    """
    return _each_leaf(lambda leaf: _moved(leaf, device), batch)


def each_tensor(function: Callable[[torch.Tensor], torch.Tensor], batch: Any) -> Any:
    """Applies a function to each tensor of a nested batch; everything else stays as it is, what moves itself too."""
    return _each_leaf(lambda leaf: function(leaf) if isinstance(leaf, torch.Tensor) else leaf, batch)


def each_output(function: Callable[[torch.Tensor], torch.Tensor], outputs: Any) -> Any:
    """Applies a function to each tensor of a model's nested outputs; everything else stays as it is.

    What a batch hides behind a method `to` is opened here (a PackedSequence). A mapping is built anew, since a copy may
    share its items with what the model returned: as a dict, or by its class where that is a dataclass of outputs
    (transformers' and its likes, known by `to_tuple`), whose constructor fills attributes beside the items.
    """
    if isinstance(outputs, torch.Tensor):
        return function(outputs)
    if isinstance(outputs, Mapping):
        items = {key: each_output(function, value) for key, value in outputs.items()}
        return type(outputs)(**items) if hasattr(outputs, "to_tuple") else items
    return _each_part(partial(each_output, function), outputs)


def num_bytes(sample: Any) -> int:
    """Bytes of the tensors and arrays in a nested sample."""
    if isinstance(sample, torch.Tensor | np.ndarray):
        return int(sample.nbytes)
    if isinstance(sample, MutableMapping):
        return sum(map(num_bytes, sample.values()))
    return sum(map(num_bytes, sample)) if isinstance(sample, list | tuple) else 0


def describe(sample: Any) -> str:
    """A nested sample's types and shapes in one line: ``(float32 (3, 32, 32), int)``."""
    if isinstance(sample, torch.Tensor | np.ndarray):
        return f"{str(sample.dtype).removeprefix('torch.')} {tuple(sample.shape)}"
    if isinstance(sample, MutableMapping):
        return "{" + ", ".join(f"{key}: {describe(value)}" for key, value in sample.items()) + "}"
    if isinstance(sample, list | tuple):
        return f"({', '.join(map(describe, sample))})"
    return type(sample).__name__


def _each_leaf(function: Callable[[Any], Any], batch: Any) -> Any:
    if callable(getattr(batch, "to", None)):  # tensors too
        return function(batch)
    if isinstance(batch, MutableMapping):
        out = copy.copy(batch)  # keeps its class, for example OrderedDict
        for key, value in batch.items():
            out[key] = _each_leaf(function, value)
        return out
    return _each_part(partial(_each_leaf, function), batch)


def _each_part(function: Callable[[Any], Any], parts: Any) -> Any:
    if isinstance(parts, tuple) and hasattr(parts, "_fields"):
        return type(parts)(*map(function, parts))
    if isinstance(parts, list | tuple):
        return type(parts)(map(function, parts))
    return parts


def _moved(leaf: Any, device: torch.device) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf.to(device)
    if device.type == "cuda" and leaf.device.type == "cpu":
        return leaf.pin_memory().to(device, non_blocking=True)
    if device.type == "cpu" and leaf.layout == torch.strided and leaf.data_ptr() % _ALIGNMENT:
        return leaf.to(device, copy=True)
    return leaf.to(device)
