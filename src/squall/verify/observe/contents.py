"""What a sample, or a batch, holds: a hash of its numbers, and whether they are those that a data set has stored.

Tensors may have no numbers that lie in this process's memory in order: sparse ones, nested ones, those that stand for
others (fake, spread over processes). Of these nothing is said.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_HASHED = 1 << 16  # bytes of each array of a sample


def content(sample: Any, start: int = 0) -> int:
    """A hash of what a sample holds."""
    if isinstance(sample, Tensor):
        if not is_plain(sample):
            return start
        flat = sample.detach().resolve_conj().resolve_neg().reshape(-1)
        return zlib.crc32(flat.contiguous().view(torch.uint8)[:_HASHED].numpy().tobytes(), start)
    if isinstance(sample, numpy.ndarray):
        if sample.dtype.hasobject:
            return content(sample.tolist(), start)
        return zlib.crc32(sample.tobytes()[:_HASHED], start)
    if isinstance(sample, dict):
        for key in sorted(sample, key=str):
            start = content(sample[key], start)
        return start
    if isinstance(sample, list | tuple):
        for one in sample:
            start = content(one, start)
        return start
    if isinstance(sample, int | float | str | bytes):
        return zlib.crc32(repr(sample).encode(), start)
    if hasattr(sample, "tobytes"):  # a picture
        return zlib.crc32(sample.tobytes()[:_HASHED], start)
    return start


def is_stored(sample: Any, index: int, dataset: Any) -> int:
    """Whether a sample's first part is what the data set has stored: 1, 0, or -1 where nothing is stored."""
    first = sample[0] if isinstance(sample, list | tuple) and sample else sample
    value = _numbers(first)
    size = length(dataset)
    if value is None or not 0 <= index < size:
        return -1
    found = -1
    for stored in list(getattr(dataset, "__dict__", {}).values()):
        is_array = isinstance(stored, Tensor | numpy.ndarray) and stored.ndim == value.ndim + 1
        if is_array and len(stored) == size and stored.shape[1:] == value.shape:
            row = _numbers(stored[index])
            if row is not None:
                found = max(found, int(numpy.array_equal(row, value)))
    return found


def count(tensor: Tensor) -> int:
    """How many samples a tensor of a batch holds; 0 of a number."""
    return int(tensor.size(0)) if tensor.dim() else 0


def each(tensor: Tensor, most: int) -> list[int]:
    """Hashes of the samples that a tensor of a batch holds; none where they cannot be told."""
    if tensor.dim() < 2 or not is_plain(tensor):
        return []
    return [content(row) for row in tensor[:most]]


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor's numbers lie in this process's memory, in order."""
    stands_for_others = hasattr(tensor, "to_local") or is_traceable_wrapper_subclass(tensor)
    strange = tensor.is_nested or tensor.is_quantized or stands_for_others or isinstance(tensor, FakeTensor)
    return tensor.device.type == "cpu" and tensor.layout == torch.strided and not strange


def _numbers(value: Any) -> numpy.ndarray[Any, Any] | None:
    """A tensor, or an array, as an array; None for others."""
    if isinstance(value, numpy.ndarray | numpy.generic):
        return numpy.asarray(value)
    if not isinstance(value, Tensor) or not is_plain(value):
        return None
    value = value.detach().resolve_conj().resolve_neg()
    try:
        return numpy.asarray(value.numpy())
    except TypeError:  # NumPy has no such type
        return numpy.asarray(value.float().numpy())


def length(thing: Any) -> int:
    """How many a thing says it holds; -1 where it says nothing."""
    try:
        return len(thing)
    except Exception:  # it is the user's code: TypeError, NotImplementedError, whatever says that there is none
        return -1
