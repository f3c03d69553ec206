"""Fast reduction: each process adds up its passes, the collective adds up the processes.

Equal to the exact sum up to rounding; the order of the additions is the collective's, so the bits depend on the
number of processes. One vector, one all-reduce a bucket, overlapped with the backward pass as in `exact.py`. Two
processes over Gloo send each other the bucket instead and both add: the same sum and bytes, one journey instead of two.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from squall.reduce import tree
from squall.reduce.lane import Bucket, Reduction
from squall.reduce.wire import PeerLostError, Pending, exchange, is_ordered


class FastReduction(Reduction):
    """Sums a vector over all passes with all-reduce; arguments as `TreeReduction`."""

    def __init__(
        self,
        group: Any,
        rank: int,
        num_processes: int,
        buckets: Sequence[Bucket],
        like: torch.Tensor,
        tag: int = 0,
    ) -> None:
        self._group, self._rank, self._size = group, rank, num_processes
        self._swaps = num_processes == 2 and not is_ordered(group)
        self._tag = tag
        self._buckets = list(buckets)
        self.vectors = [like.new_zeros(self._buckets[-1].stop if self._buckets else 0)]
        self._first = 0
        self._next_bucket = 0
        self._works: list[Any] = []
        self._theirs = like.new_empty(len(self.vectors[0]) if self._swaps else 0)
        self._under_way: list[tuple[slice, Pending, Pending]] = []

    def open(self, num_leaves: int) -> range:
        """Begins a step; a process without a pass contributes zeros."""
        lo, hi = tree.share(num_leaves, self._size, self._rank)
        self._first, self._next_bucket = lo, 0
        self.waited = 0.0
        if lo == hi:
            self.vectors[0].zero_()
        return range(lo, hi)

    def begin_pass(self, leaf: int) -> tuple[int, bool]:
        """The first pass overwrites the vector, the others add to it."""
        return 0, leaf != self._first

    def end_pass(self) -> None:
        """Nothing to merge."""

    def ready(self, bucket: int) -> None:
        """Starts the sum of one bucket."""
        self._next_bucket = bucket + 1
        if self._group is None or self._size == 1:
            return
        piece = slice(self._buckets[bucket].start, self._buckets[bucket].stop)
        mine = self.vectors[0][piece]
        if not self._swaps:
            self._works.append(self._group.allreduce([mine]))
            return
        peer, tag = 1 - self._rank, self._tag + 2 * bucket
        wanted = [(peer, self._theirs[piece])]
        sent, got = exchange(self._group, [(peer, mine)], wanted, tag, "to add up a bucket", ordered=False)
        self._under_way.append((piece, sent, got))

    def finish(self) -> torch.Tensor:
        """Starts what was not started, waits for all."""
        for bucket in range(self._next_bucket, len(self._buckets)):
            self.ready(bucket)
        started = time.perf_counter()
        for piece, sent, got in self._under_way:
            got.wait()
            sent.wait()  # from the memory that the sum is about to overwrite
            self.vectors[0][piece].add_(self._theirs[piece])
        self._under_way.clear()
        for work in self._works:
            try:
                work.wait()
            except RuntimeError as error:
                raise PeerLostError(None, "to all-reduce a bucket", "for", str(error)) from error
        self._works.clear()
        self.waited += time.perf_counter() - started
        return self.vectors[0]
