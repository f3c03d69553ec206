"""Which batch a network's inputs came from: by their memory, or else by their numbers.

What is given to a network is a loader's batch itself, a view of it, or a copy on another device. Of each of the latest
batches it is noted where its numbers lie, as long as they lie there, and a hash of some of them; nothing is held.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from squall.verify.observe.recorder import positions, sampled

_Storage: Any = StorageWeakRef
_LATEST = 4  # batches: loaders and scripts read ahead

Print = tuple[torch.Size, torch.dtype, int]
"""Shape, type and a hash of some numbers of a tensor."""


@dataclass(frozen=True)
class _Batch:
    note: dict[str, Any]
    memory: Sequence[tuple[range, Any]]
    prints: set[Print]


class Recent:
    """The batches that were given out last."""

    def __init__(self) -> None:
        self._batches: deque[_Batch] = deque(maxlen=_LATEST)

    def add(self, note: dict[str, Any], tensors: Sequence[Tensor]) -> None:
        """A batch was given out."""
        plain = [one for one in map(_numbers, tensors) if one is not None]
        memory = [(_place(one), _Storage(one.untyped_storage())) for one in plain]
        self._batches.append(_Batch(note, memory, {_print(one) for one in plain}))

    def find(self, tensors: Sequence[Tensor]) -> dict[str, Any] | None:
        """The latest batch that one of the tensors lies in, or is equal to one of; None where there is none."""
        plain = [one for one in map(_numbers, tensors) if one is not None]
        begins = {one.data_ptr() for one in plain}
        for batch in reversed(self._batches):
            if any(begin in place and not storage.expired() for place, storage in batch.memory for begin in begins):
                return batch.note
        prints = {_print(one) for one in plain}
        for batch in reversed(self._batches):
            if not prints.isdisjoint(batch.prints):
                return batch.note
        return None


def _numbers(tensor: Tensor) -> Tensor | None:
    """This process's numbers of a tensor; None where it has none, or they have no order."""
    tensor = tensor.detach()
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    if local.is_nested or local.is_quantized or local.layout != torch.strided or local.numel() == 0:
        return None
    try:
        return local if local.data_ptr() else None
    except RuntimeError:  # it stands for others
        return None


def _place(tensor: Tensor) -> range:
    """Where its numbers lie; where others may lie between them, only the first."""
    begin = tensor.data_ptr()
    return range(begin, begin + (tensor.nbytes if tensor.is_contiguous() else 1))


def _print(tensor: Tensor) -> Print:
    some = sampled(tensor, positions(tensor.numel())).resolve_conj().resolve_neg().to("cpu")
    return tensor.shape, tensor.dtype, zlib.crc32(some.contiguous().view(torch.uint8).numpy().tobytes())
