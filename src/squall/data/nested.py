"""Batches as people nest them: tensors in lists, tuples, named tuples and mappings, brought to a device.

Kernels may take another path, and give other bits, on memory that does not start at a multiple of 64 bytes, where
torch's own allocations start: NumPy's arrays and slices are copied on the way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, MutableMapping
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
    """Applies a function to each tensor of a nested batch; everything else stays as it is."""
    return _each_leaf(lambda leaf: function(leaf) if isinstance(leaf, torch.Tensor) else leaf, batch)


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
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_each_leaf(function, part) for part in batch))
    if type(batch) in (list, tuple):
        return type(batch)(_each_leaf(function, part) for part in batch)
    return batch


def _moved(leaf: Any, device: torch.device) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf.to(device)
    if device.type == "cuda" and leaf.device.type == "cpu":
        return leaf.pin_memory().to(device, non_blocking=True)
    if device.type == "cpu" and leaf.layout == torch.strided and leaf.data_ptr() % _ALIGNMENT:
        return leaf.to(device, copy=True)
    return leaf.to(device)
