"""Norms whose bits depend on the values alone: not on threads, memory format, or where a tensor lies.

A sum over a long tensor is cut into as many parts as there are threads, so its last bits change with them. Here the cut
is fixed: blocks of 4,096 values, each summed by one thread in float64, then blocks of block sums, until one is left::

    values   [4096] [4096] [4096] ... [rest, zeros]
    sums        s0     s1     s2  ...      sm          -> the same again, until one value is left

Layer-wise rates turn such a norm into a factor on every weight of a layer: one bit here is all bits there.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

_BLOCK = 4096


def norm(tensor: Tensor) -> Tensor:
    """The Euclidean norm of a whole tensor.

    Arguments:
        tensor: any shape, memory format and floating-point type.

    Returns:
        A float64 tensor of no dimensions on the same device; no synchronisation with the host.
    """
    return _sum(tensor.detach().reshape(-1).double().square()).sqrt()


def _sum(values: Tensor) -> Tensor:
    # values: (length,) -> (blocks, 4096) -> (blocks,), until one value is left
    while values.numel() > 1:
        values = functional.pad(values, (0, -values.numel() % _BLOCK)).view(-1, _BLOCK).sum(dim=1)
    return values.sum()
