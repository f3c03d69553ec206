"""Exact reduction: the sum's bits do not depend on how many processes formed it.

Each process adds the passes it hosts into the nodes of the tree that lie inside its run of leaves (`tree.py`). Then,
bucket by bucket, every process sends its few node sums to the bucket part's owner, straight from the vector they lie
in; the owner adds them along the tree and sends the finished part back, straight into the vector::

    bucket b, 2 processes            rank 0                                rank 1
    node sums of part 1        slots[0][part 1]  ---------------------->   staging
    node sums of part 0        staging           <----------------------   slots[0][part 0]
    add along the tree         part 0                                      part 1
    results                    vectors[0][part 0] --------------------->   vectors[0][part 0]
                               vectors[0][part 1] <---------------------   vectors[0][part 1]

The result may overwrite `vectors[0]` although node sums were sent from there: the owner's answer for a part can only
come after it has received that part. Bucket b's additions are done when bucket b + 1 is ready, so that its messages
travel meanwhile. Cost: each process sends and receives 2 (P-1)/P of the vector when it has one node a part (Goyal et
al. 2017, section 4: the same as an allreduce), and holds about log2(passes) + 1 vectors.

A small bucket, and any bucket between two processes of one node each, goes the direct way: all send all their node sums
to all, and each adds up the whole. The bits are the same, the bytes no more (or few), and there is one journey instead
of two, which takes some tenths of a millisecond where computing keeps every core busy.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from squall.reduce import tree
from squall.reduce.lane import Bucket, Reduction
from squall.reduce.wire import Group, Message, Pending, exchange, is_ordered

_DIRECT_BYTES = 64 << 10


@dataclass
class _Travelling:
    bucket: int
    direct: bool
    parts: list[tuple[int, int]]
    sent: Pending
    sums: Pending
    frontier: list[torch.Tensor]


class TreeReduction(Reduction):
    """Sums a vector over all passes along the fixed tree.

    Arguments:
        group: the job's process group, or None for one process.
        rank: this process.
        num_processes: P.
        buckets: cuts of the vector, in the order in which they get ready.
        like: an empty tensor whose dtype and device the vectors take.
        tag: first of the message tags used: two for each bucket.
    """

    def __init__(
        self,
        group: Group | None,
        rank: int,
        num_processes: int,
        buckets: Sequence[Bucket],
        like: torch.Tensor,
        tag: int = 0,
    ) -> None:
        self._group, self._rank, self._size = group, rank, num_processes
        self._ordered = is_ordered(group)
        self._buckets = list(buckets)
        self._parts = [bucket.parts(num_processes) for bucket in self._buckets]
        self._tag = tag
        self._numel = self._buckets[-1].stop if self._buckets else 0
        self.vectors = [like.new_zeros(self._numel)]
        self._staging: dict[tuple[int, int, int], torch.Tensor] = {}
        self._sums = tree.local_sums(0, 0, 0)
        self._covers: list[tuple[tree.Node, ...]] = []  # the nodes that each process brings
        self._leaf = 0
        self._first = 0
        self._step: tree.LeafStep | None = None
        self._travelling: _Travelling | None = None
        self._sent: list[Pending] = []
        self._results: list[Pending] = []
        self._next_bucket = 0

    def open(self, num_leaves: int) -> range:
        """Begins a step; grows the set of vectors when this step's share needs more."""
        shares = [tree.share(num_leaves, self._size, rank) for rank in range(self._size)]
        self._covers = [tree.local_sums(num_leaves, *share).cover for share in shares]
        lo, hi = shares[self._rank]
        self._sums = tree.local_sums(num_leaves, lo, hi)
        while len(self.vectors) < self._sums.num_slots:
            self.vectors.append(self.vectors[0].new_zeros(self._numel))
        self._first = lo
        self._next_bucket = 0
        self._step = None
        self.waited = 0.0
        return range(lo, hi)

    def begin_pass(self, leaf: int) -> tuple[int, bool]:
        """Which vector takes the leaf, and whether it is added there."""
        self._step = self._sums.steps[leaf - self._first]
        return self._step.slot, self._step.accumulate

    def end_pass(self) -> None:
        """Merges whole vectors after a pass that is not the last."""
        if self._step is not None:
            for target, source in self._step.merges:
                self.vectors[target].add_(self.vectors[source])

    def ready(self, bucket: int) -> None:
        """Merges this bucket of the last pass, sends its node sums, completes the bucket before."""
        piece = slice(self._buckets[bucket].start, self._buckets[bucket].stop)
        if self._step is not None:
            for target, source in self._step.merges:
                self.vectors[target][piece].add_(self.vectors[source][piece])
        self._next_bucket = bucket + 1
        if self._size == 1 or self._group is None:
            return
        before, self._travelling = self._travelling, self._send(bucket)
        if before is not None:
            self._complete(before)

    def finish(self) -> torch.Tensor:
        """Completes what is under way and returns the sum."""
        for bucket in range(self._next_bucket, len(self._buckets)):
            self.ready(bucket)
        if self._travelling is not None:
            last, self._travelling = self._travelling, None
            self._complete(last)
        started = time.perf_counter()
        for pending in (*self._results, *self._sent):
            pending.wait()
        self.waited += time.perf_counter() - started
        self._results.clear()
        self._sent.clear()
        return self.vectors[0]

    def _send(self, bucket: int) -> _Travelling:
        direct = self._goes_direct(bucket)
        whole = (self._buckets[bucket].start, self._buckets[bucket].stop)
        parts = [whole] * self._size if direct else self._parts[bucket]
        start, stop = parts[self._rank]
        sends: list[Message] = [
            (peer, self.vectors[slot][parts[peer][0] : parts[peer][1]])
            for peer in self._peers(parts)
            for slot in range(len(self._sums.cover))
        ]
        frontier: list[torch.Tensor] = []
        receives: list[Message] = []
        for rank, nodes in enumerate(self._covers):
            if rank == self._rank:
                frontier += [self.vectors[slot][start:stop] for slot in range(len(nodes))]
            elif stop > start:
                for _ in nodes:
                    frontier.append(self._stage(bucket, len(receives), stop - start))
                    receives.append((rank, frontier[-1]))
        sent, sums = self._exchange(sends, receives, self._tag + 2 * bucket, "to exchange partial sums")
        return _Travelling(bucket, direct, parts, sent, sums, frontier)

    def _complete(self, travelling: _Travelling) -> None:
        started = time.perf_counter()
        travelling.sums.wait()
        self.waited += time.perf_counter() - started
        bucket, parts = travelling.bucket, travelling.parts
        start, stop = parts[self._rank]
        if travelling.direct:
            travelling.sent.wait()  # from the memory that the sum is about to overwrite
        else:
            self._sent.append(travelling.sent)
        mine = self.vectors[0][start:stop]
        if stop > start:
            nodes = tuple(node for cover in self._covers for node in cover)
            for target, source in tree.root_sum(nodes):
                travelling.frontier[target].add_(travelling.frontier[source])
            if travelling.frontier[0].data_ptr() != mine.data_ptr():
                mine.copy_(travelling.frontier[0])
        if travelling.direct:
            return
        receives = [(peer, self.vectors[0][parts[peer][0] : parts[peer][1]]) for peer in self._peers(parts)]
        sends = [(peer, mine) for peer in range(self._size) if peer != self._rank and stop > start]
        sent, results = self._exchange(sends, receives, self._tag + 2 * bucket + 1, "to finish a sum")
        self._sent.append(sent)
        self._results.append(results)

    def _goes_direct(self, bucket: int) -> bool:
        """Whether every process adds up the whole bucket; the same answer on all of them."""
        numel = self._buckets[bucket].stop - self._buckets[bucket].start
        if numel * self.vectors[0].element_size() <= _DIRECT_BYTES:
            return True
        return self._size == 2 and all(len(nodes) == 1 for nodes in self._covers)

    def _peers(self, parts: Sequence[tuple[int, int]]) -> list[int]:
        return [peer for peer in range(self._size) if peer != self._rank and parts[peer][1] > parts[peer][0]]

    def _stage(self, bucket: int, index: int, length: int) -> torch.Tensor:
        key = (bucket, index, length)
        if key not in self._staging:
            self._staging[key] = self.vectors[0].new_empty(length)
        return self._staging[key]

    def _exchange(
        self, sends: list[Message], receives: list[Message], tag: int, purpose: str
    ) -> tuple[Pending, Pending]:
        assert self._group is not None
        return exchange(self._group, sends, receives, tag, purpose, ordered=self._ordered)
