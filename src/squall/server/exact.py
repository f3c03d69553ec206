"""Sums of vectors that do not depend on the order in which they come, to the last bit.

Floating-point addition rounds, so that a sum's bits depend on who was first. Here each summand is rounded once, to a
multiple of one quantum that is fixed beforehand; sums of such multiples are exact in float64 as long as they stay below
2^52 quanta, and exact sums have no order (Demmel & Nguyen 2015, IEEE Transactions on Computers 64, 2060)::

    bound    a power of two above most * largest, with room for summands 2^9 times as large as expected
    quantum  bound / 2^52: for a thousand summands 2^-32 of the largest element, far below what float32 resolves
    round    (x + 1.5 bound) - 1.5 bound

What rounding takes away from summands in float64 is added up in the same way, with a quantum of its own. What is
largest is known from sums before, or from the first summand, where that is always the same one.
"""

from __future__ import annotations

import math

import torch

from squall.optim.algebra import BLOCK

_ROOM = 10  # powers of two; with one for rounding, a summand may be 2^9 times as large as expected
_DIGITS = 52  # a sum stays below so many bits of its quantum


class ExactSums:
    """The sum of vectors of one length.

    Arguments:
        size: their length.
        dtype: float32 or float64.

    Attributes:
        largest: magnitude of the largest element of any summand.
    """

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        folds = 2 if dtype == torch.float64 else 1
        self._folds = [torch.zeros(size, dtype=torch.float64) for _ in range(folds)]
        self._rest, self._rounded = (torch.empty(min(size, BLOCK), dtype=torch.float64) for _ in range(2))
        self.largest = 0.0
        self._most, self._bound = 1, 0.0

    def begin(self, largest: float, most: int) -> None:
        """Begins with zero.

        Arguments:
            largest: magnitude of the elements that are to be expected; 0: that of the first summand.
            most: summands.
        """
        for fold in self._folds:
            fold.zero_()
        self.largest, self._most, self._bound = 0.0, most, 0.0
        if largest:
            self._bound = _above(largest * most)

    @property
    def exact(self) -> bool:
        """Whether no summand was larger than there was room for: then the order of all did not matter."""
        return self.largest * self._most <= self._bound / 2

    def take(self) -> torch.Tensor:
        """The sum, (size,), float64: the caller's to change, until the next `begin`. It can be taken once."""
        for fold in self._folds[1:]:
            self._folds[0].add_(fold)
        return self._folds[0]

    def add(self, summand: torch.Tensor) -> None:
        """Adds a vector; (size,)."""
        if not len(summand):
            return
        largest = float(torch.linalg.vector_norm(summand, math.inf))
        if math.isfinite(largest):
            self.largest = max(self.largest, largest)
        if not self._bound:
            self._bound = _above((largest if math.isfinite(largest) and largest else 1.0) * self._most)
        for start in range(0, len(summand), BLOCK):
            part = summand[start : start + BLOCK]
            rest, rounded = self._rest[: len(part)].copy_(part), self._rounded[: len(part)]
            bound = self._bound
            for fold in self._folds:
                torch.add(rest, 1.5 * bound, out=rounded).sub_(1.5 * bound)
                fold[start : start + BLOCK].add_(rounded)
                rest.sub_(rounded)  # at most half a quantum
                bound = 2.0 ** (math.ceil(math.log2(bound * self._most)) - _DIGITS + 1)


def _above(total: float) -> float:
    return 2.0 ** (math.ceil(math.log2(total)) + _ROOM)
