"""A model's tensors as one flat vector.

Every tensor gets a place in the vector, padded to a multiple of `ALIGN` elements, so that a cut at any tensor's border
falls on one. Views into the vector have the tensor's own shape and strides (channels-last weights stay channels-last),
so that copying a gradient into its place is one plain copy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

ALIGN = 64
"""Elements: every cut of a flat vector falls on a multiple, since fused kernels treat a vector's tail differently."""


def aligned(size: int) -> int:
    """The next multiple of `ALIGN` from a size on."""
    return -(-size // ALIGN) * ALIGN


@dataclass(frozen=True)
class Place:
    """Where one tensor lies in the vector: offset and number of elements; shape and strides of its view."""

    name: str
    offset: int
    numel: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def end(self) -> int:
        """Where the next tensor may begin."""
        return self.offset + aligned(self.numel)

    def view(self, vector: torch.Tensor) -> torch.Tensor:
        """The tensor's view of the vector."""
        return vector.as_strided(self.shape, self.stride, vector.storage_offset() + self.offset)


def place(named: Iterable[tuple[str, torch.Tensor]], start: int = 0) -> list[Place]:
    """Lays tensors one after the other, from `start` (a multiple of `ALIGN`)."""
    places = []
    for name, tensor in named:
        stride = tensor.stride() if _is_dense(tensor) else torch.empty(tensor.shape, device="meta").stride()
        places.append(Place(name, start, tensor.numel(), tuple(tensor.shape), tuple(stride)))
        start = places[-1].end
    return places


def _is_dense(tensor: torch.Tensor) -> bool:
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1):
        if stride != expected:
            return False
        expected *= size
    return True
