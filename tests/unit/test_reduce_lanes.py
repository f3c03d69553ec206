"""Both reductions over in-process groups: any number of ranks, any number of passes, ragged buckets."""

import queue
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch

from squall.reduce import Bucket, FastReduction, Reduction, TreeReduction, buckets, exact, tree


class Mailbox:
    """What the ranks of one in-process job share."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._letters: dict[tuple[int, int, int], queue.Queue[torch.Tensor]] = defaultdict(queue.Queue)
        self._lock = threading.Lock()
        self.barrier = threading.Barrier(size)
        self.sums: dict[tuple[int, int], torch.Tensor] = {}

    def letters(self, sender: int, receiver: int, tag: int) -> queue.Queue[torch.Tensor]:
        """The queue of one lane: sender and receiver may ask for it first at the same moment."""
        with self._lock:
            return self._letters[sender, receiver, tag]


class Work:
    def __init__(self, wait: Callable[[], None]) -> None:
        self._wait = wait

    def wait(self) -> None:
        self._wait()


class InProcessGroup:
    """Sends and receives as a Gloo group does: asynchronous, matched by source and tag; a late sum on wait."""

    def __init__(self, box: Mailbox, rank: int) -> None:
        self.box, self.rank = box, rank

    def send(self, tensors: list[torch.Tensor], dst: int, tag: int) -> Work:
        self.box.letters(self.rank, dst, tag).put(tensors[0].clone())
        return Work(lambda: None)

    def recv(self, tensors: list[torch.Tensor], src: int, tag: int) -> Work:
        def wait() -> None:
            tensors[0].copy_(self.box.letters(src, self.rank, tag).get(timeout=10))

        return Work(wait)

    def allreduce(self, tensors: list[torch.Tensor]) -> Work:
        mine = tensors[0].clone()

        def wait() -> None:
            for peer in range(self.box.size):
                if peer != self.rank:
                    self.box.letters(self.rank, peer, -1).put(mine)
            parts = {self.rank: mine}
            for peer in range(self.box.size):
                if peer != self.rank:
                    parts[peer] = self.box.letters(peer, self.rank, -1).get(timeout=10)
            tensors[0].copy_(torch.stack([parts[rank] for rank in range(self.box.size)]).sum(0))

        return Work(wait)


def reduce_all(kind: str, size: int, passes: torch.Tensor, cuts: list[Bucket], steps: int = 1) -> list[torch.Tensor]:
    """Runs `steps` equal steps on `size` ranks; returns each rank's last sum."""
    box = Mailbox(size)
    results: dict[int, torch.Tensor] = {}
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            group: Any = InProcessGroup(box, rank) if size > 1 else None
            like = passes.new_empty(0)
            lane: Reduction = (
                TreeReduction(group, rank, size, cuts, like)
                if kind == "exact"
                else FastReduction(group, rank, size, cuts, like)
            )
            for _ in range(steps):
                leaves = lane.open(len(passes))
                for leaf in leaves:
                    slot, accumulate = lane.begin_pass(leaf)
                    last = leaf == leaves[-1]
                    for index, cut in enumerate(cuts):
                        piece = slice(cut.start, cut.stop)
                        if accumulate:
                            lane.vectors[slot][piece].add_(passes[leaf][piece])
                        else:
                            lane.vectors[slot][piece].copy_(passes[leaf][piece])
                        if last:
                            lane.ready(index)
                    if not last:
                        lane.end_pass()
                results[rank] = lane.finish().clone()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(size)]


CUTS = [Bucket(0, 64), Bucket(64, 448), Bucket(448, 512)]


@pytest.mark.parametrize("num_passes", [1, 2, 3, 7, 8, 12])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("direct_bytes", [0, 4 * 64, 1 << 16])
def test_exact_sums_have_equal_bits_on_any_number_of_ranks(
    monkeypatch: pytest.MonkeyPatch, size: int, num_passes: int, direct_bytes: int
) -> None:
    """By way of the owners, the direct way, and one beside the other."""
    monkeypatch.setattr(exact, "_DIRECT_BYTES", direct_bytes)
    passes = torch.randn(num_passes, 512, generator=torch.Generator().manual_seed(num_passes)) * 1e3
    (alone,) = reduce_all("exact", 1, passes, CUTS)
    for result in reduce_all("exact", size, passes, CUTS, steps=3):
        assert torch.equal(result, alone)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_fast_sums_are_equal_to_rounding_and_alike_on_all_ranks(size: int) -> None:
    passes = torch.randn(7, 512, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results = reduce_all("fast", size, passes, CUTS, steps=2)
    for result in results:
        assert torch.equal(result, results[0])
        torch.testing.assert_close(result, passes.sum(0), rtol=1e-13, atol=1e-13)


def test_exact_equals_the_textbook_tree() -> None:
    passes = torch.randn(11, 512, generator=torch.Generator().manual_seed(3))

    def textbook(node: tree.Node) -> torch.Tensor:
        if node[1] - node[0] == 1:
            return passes[node[0]]
        left, right = tree.split(node)
        return textbook(left) + textbook(right)

    assert torch.equal(reduce_all("exact", 4, passes, CUTS)[2], textbook((0, 11)))


def test_buckets_cut_at_tensor_ends_and_cover_the_vector() -> None:
    cuts = buckets([64, 128, 640, 704, 1024, 1088], 512)
    assert cuts == [Bucket(0, 640), Bucket(640, 1088)]
    assert buckets([64], 512) == [Bucket(0, 64)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_parts_cut_a_bucket_on_multiples_of_64(size: int) -> None:
    parts = Bucket(128, 128 + 64 * 10).parts(size)
    assert parts[0][0] == 128
    assert parts[-1][1] == 128 + 640
    assert all(start % 64 == 0 and stop % 64 == 0 for start, stop in parts)
    assert sum(stop - start for start, stop in parts) == 640
