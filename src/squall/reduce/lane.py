"""What both reductions share: buckets of a flat vector, and the calls the training step makes.

A step adds one vector per pass and wants the sum over all passes of all processes. The vector is cut into buckets in
the order in which the backward pass completes them, so that in a process's last pass one bucket travels while the
next is still being computed::

    pass 0        pass 1 (last)
    |------------|---- bucket 0 ready ---- bucket 1 ready ---- ... ----| finish
                      |== travels ==|
                                           |== travels ==|
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from squall.reduce.flat import ALIGN


@dataclass(frozen=True)
class Bucket:
    """A contiguous piece [start, stop) of the flat vector, both multiples of `ALIGN`."""

    start: int
    stop: int

    def parts(self, num_processes: int) -> list[tuple[int, int]]:
        """One piece for each process to own; cuts on multiples of `ALIGN`; pieces may be empty."""
        blocks = (self.stop - self.start) // ALIGN
        cuts = [self.start + ALIGN * (rank * blocks // num_processes) for rank in range(num_processes + 1)]
        return list(itertools.pairwise(cuts))


def buckets(ends: Sequence[int], bucket_size: int) -> list[Bucket]:
    """Groups consecutive pieces of a vector into buckets of at least `bucket_size` elements (the last may be smaller).

    Arguments:
        ends: where each piece ends, ascending multiples of `ALIGN`.
        bucket_size: elements.
    """
    found: list[Bucket] = []
    start = 0
    for end in ends:
        if end - start >= bucket_size:
            found.append(Bucket(start, end))
            start = end
    if ends and start < ends[-1]:
        found.append(Bucket(start, ends[-1]))
    return found


class Reduction(ABC):
    """Sums one vector a pass over all passes of all processes.

    The calls of a step, in order::

        open(num_leaves)
        for each hosted pass:  slot, accumulate = begin_pass(i)   write or add the pass's values into vectors[slot]
                               end_pass()                         in the last pass: ready(bucket) for each instead
        finish() -> the sum, in vectors[0]
    """

    vectors: list[torch.Tensor]
    waited: float = 0.0
    """Seconds that this process has stood still for others since the step was opened."""

    @abstractmethod
    def open(self, num_leaves: int) -> range:
        """Begins a step of `num_leaves` passes; returns those this process hosts."""

    @abstractmethod
    def begin_pass(self, leaf: int) -> tuple[int, bool]:
        """Says which vector takes this pass's values, and whether they are added to what it holds."""

    @abstractmethod
    def end_pass(self) -> None:
        """All values of this pass are written (not called for the last hosted pass)."""

    @abstractmethod
    def ready(self, bucket: int) -> None:
        """In the last hosted pass: all values of this bucket are written. Called once each, in order of buckets."""

    @abstractmethod
    def finish(self) -> torch.Tensor:
        """Waits until the whole sum is there and returns it: `vectors[0]`, the same on every process."""
