"""Where each tensor stands in a checkpoint: one flat vector a dtype, cut into slices that ranks write side by side.

All ranks hold equal state, so each writes a part of it, and any number of ranks can read it again::

    float32   | conv1.weight | bn1.weight | ... | momentum of conv1.weight | ... |
              |------- rank-0.safetensors -------|------ rank-1.safetensors -----|

Every tensor begins at a multiple of 64 elements. Elements stand in logical order, whatever the memory format; the
strides are noted, so that a tensor that is made anew lies in memory as the one that was saved.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from squall.errors import RunError

ALIGN = 64
"""Elements: where tensors and slices begin."""

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
}
DTYPES = {name: dtype for dtype, name in _NAMES.items()}
"""By their names in safetensors files."""


@dataclass(frozen=True)
class Entry:
    """One tensor's place.

    Attributes:
        name: unique in the checkpoint.
        dtype: of its vector, as safetensors call it.
        shape: of the tensor.
        stride: None where it is contiguous.
        offset: of its first element in the vector.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None
    offset: int

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    def empty(self, device: torch.device) -> torch.Tensor:
        """A new tensor that lies in memory as the saved one did."""
        dtype = DTYPES[self.dtype]
        if self.stride is None:
            return torch.empty(self.shape, dtype=dtype, device=device)
        return torch.empty_strided(self.shape, self.stride, dtype=dtype, device=device)

    def as_json(self) -> list[object]:
        """For the manifest."""
        return [self.name, self.dtype, list(self.shape), self.stride and list(self.stride), self.offset]

    @staticmethod
    def of_json(values: Sequence[object]) -> Entry:
        """From the manifest."""
        name, dtype, shape, stride, offset = values
        return Entry(name, dtype, tuple(shape), tuple(stride) if stride else None, offset)  # type: ignore[arg-type]


def entries(tensors: Mapping[str, torch.Tensor]) -> list[Entry]:
    """Places for tensors, in their order.

    Raises:
        RunError: numbers of a kind that files do not hold.
    """
    ends: dict[str, int] = {}
    found = []
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise RunError(
                f"{name} cannot be saved",
                [("found", f"numbers of {tensor.dtype}"), ("rule", f"a checkpoint holds {' '.join(DTYPES)}")],
            )
        dtype = _NAMES[tensor.dtype]
        start = ends.get(dtype, 0)
        stride = None if tensor.is_contiguous() or not _is_dense(tensor) else tuple(tensor.stride())
        found.append(Entry(name, dtype, tuple(tensor.shape), stride, start))
        ends[dtype] = start + _aligned(tensor.numel())
    return found


def lengths(placed: Iterable[Entry]) -> dict[str, int]:
    """Elements of each dtype's vector."""
    found: dict[str, int] = {}
    for entry in placed:
        found[entry.dtype] = max(found.get(entry.dtype, 0), entry.offset + _aligned(entry.numel))
    return found


def cut(length: int, num_parts: int, part: int) -> tuple[int, int]:
    """The slice of a vector that one of several writers writes; cuts on multiples of `ALIGN`."""
    blocks = -(-length // ALIGN)
    return ALIGN * (part * blocks // num_parts), min(ALIGN * ((part + 1) * blocks // num_parts), length)


def num_bytes(vectors: Mapping[str, tuple[int, int]]) -> int:
    """Bytes that slices take in memory, each beginning at a multiple of 64 bytes."""
    return sum(_aligned((stop - start) * DTYPES[dtype].itemsize) for dtype, (start, stop) in vectors.items())


def views(memory: torch.Tensor, vectors: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str, int, torch.Tensor]]:
    """Each slice's dtype, offset in bytes, and the slice as a vector of that dtype, inside a tensor of bytes."""
    offset = 0
    for dtype, (start, stop) in vectors.items():
        size = (stop - start) * DTYPES[dtype].itemsize
        yield dtype, offset, memory[offset : offset + size].view(DTYPES[dtype])
        offset += _aligned(size)


@torch.no_grad()
def copy_slice(placed: Iterable[Entry], tensors: Mapping[str, torch.Tensor], start: int, target: torch.Tensor) -> None:
    """Copies the part of one dtype's vector that begins at `start` into `target`."""
    stop = start + len(target)
    for entry in placed:
        first, last = max(entry.offset, start), min(entry.offset + entry.numel, stop)
        if first >= last:
            continue
        tensor = tensors[entry.name]
        piece = target[first - start : last - start]
        if last - first == entry.numel:
            piece.view(entry.shape).copy_(tensor)
        else:
            piece.copy_(tensor.reshape(-1)[first - entry.offset : last - entry.offset])


@torch.no_grad()
def take(entry: Entry, vector: torch.Tensor, target: torch.Tensor) -> None:
    """Copies a tensor out of its vector."""
    target.copy_(vector[entry.offset : entry.offset + entry.numel].view(entry.shape))


def _aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether the elements fill a block of memory once (no gaps, no expanded dimensions)."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True
