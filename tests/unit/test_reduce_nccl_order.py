"""Groups that match messages by their order, as NCCL does: what is called on them, and in which order on each rank."""

import pickle
import queue
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from squall.cluster.world import World
from squall.metrics import Mean
from squall.reduce import Bucket, FastReduction
from squall.reduce.wire import PeerLostError, exchange, is_ordered
from squall.run import passes as passes_module
from squall.run.passes import Passes

Call = tuple[tuple[str, int, int], ...]
"""One issue to the device: (send, receive or all-reduce; peer; elements) of each of its messages."""


class Wires:
    """What the ranks of one job share: the n-th message from a to b is under (a, b, n)."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.letters: dict[tuple[int, int, int], queue.Queue[torch.Tensor]] = defaultdict(queue.Queue)

    def letter(self, source: int, target: int, index: int) -> queue.Queue[torch.Tensor]:
        with self.lock:
            return self.letters[source, target, index]


class Work:
    def __init__(self, wait: Callable[[], None]) -> None:
        self.wait = wait


class OrderedGroup:
    """Shaped as torch's Backend for NCCL: coalescing takes no argument, tags mean nothing."""

    def __init__(self, wires: Wires, rank: int, size: int) -> None:
        self.wires, self.rank, self.size = wires, rank, size
        self.calls: list[Call] = []
        self._open: list[tuple[str, int, torch.Tensor]] | None = None
        self._count: Counter[tuple[int, int]] = Counter()

    def name(self) -> str:
        return "nccl"

    def _start_coalescing(self) -> None:
        assert self._open is None
        self._open = []

    def send(self, tensors: list[torch.Tensor], dst: int, tag: int) -> None:
        assert self._open is not None, "a send outside a group call can hang"
        self._open.append(("send", dst, tensors[0]))

    def recv(self, tensors: list[torch.Tensor], src: int, tag: int) -> None:
        assert self._open is not None, "a receive outside a group call can hang"
        self._open.append(("receive", src, tensors[0]))

    def _end_coalescing(self) -> Work:
        assert self._open, "NCCL makes no work of nothing"
        messages, self._open = self._open, None
        return self._issue(messages)

    def allreduce(self, tensors: list[torch.Tensor]) -> Work:
        total, others = tensors[0], [peer for peer in range(self.size) if peer != self.rank]
        copies = [torch.empty_like(total) for _ in others]
        sends = [("send", peer, total) for peer in others]
        work = self._issue(sends + [("receive", peer, c) for peer, c in zip(others, copies, strict=True)])

        def wait() -> None:
            work.wait()
            for copy in copies:
                total.add_(copy)

        return Work(wait)

    def _issue(self, messages: list[tuple[str, int, torch.Tensor]]) -> Work:
        self.calls.append(tuple((kind, peer, tensor.numel()) for kind, peer, tensor in messages))
        arriving = []
        for kind, peer, tensor in messages:
            ends = (self.rank, peer) if kind == "send" else (peer, self.rank)
            letter = self.wires.letter(*ends, self._count[ends])
            self._count[ends] += 1
            if kind == "send":
                letter.put(tensor.clone())
            else:
                arriving.append((tensor, letter))

        def wait() -> None:
            for tensor, letter in arriving:
                found = letter.get(timeout=5)
                assert found.shape == tensor.shape
                tensor.copy_(found)

        return Work(wait)


def seen_from_the_other(call: Call, rank: int) -> Call:
    """What the other of two ranks must issue at the same time, in any order within the call."""
    turned = {"send": "receive", "receive": "send"}
    return tuple(sorted((turned[kind], rank, numel) for kind, _, numel in call))


@pytest.mark.parametrize("exact", [True, False])
def test_a_rank_without_passes_issues_its_messages_in_the_order_of_the_others(
    monkeypatch: pytest.MonkeyPatch, exact: bool
) -> None:
    monkeypatch.setattr(passes_module, "BUCKET_BYTES", 1)  # a bucket for each of the 6 parameters
    wires = Wires()
    groups = [OrderedGroup(wires, rank, 2) for rank in range(2)]
    before_last_step = [0, 0]
    hosted = [0, 0]
    gradients: dict[int, list[torch.Tensor]] = {}
    inputs = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))
    metrics = {str(index): Mean(torch.zeros(()), 5) for index in range(99)}  # a tail of which each rank owns a part
    errors: list[BaseException] = []

    def model() -> nn.Module:
        made = nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 40), nn.Linear(40, 8))
        for index, parameter in enumerate(made.parameters()):
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(index))
        return made

    def run(rank: int) -> None:
        try:
            net = model()
            group: Any = groups[rank]
            passes = Passes(net, World(rank, 2, rank, 2, torch.device("cpu"), group, None), exact=exact)
            for num_passes in (2, 1):
                before_last_step[rank] = len(groups[rank].calls)
                leaves = passes.open(num_passes)
                hosted[rank] = len(leaves)
                for leaf in leaves:
                    passes.begin_pass(leaf)
                    loss = net(inputs[num_passes - 1 + leaf]).square().sum()
                    passes.backward(loss)
                    passes.end_pass(loss, 5, 5, metrics)
                passes.finish()
            gradients[rank] = [p.grad.clone() for p in net.parameters() if p.grad is not None]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for one, two in zip(groups[0].calls, groups[1].calls, strict=False):
        assert seen_from_the_other(one, 0) == tuple(sorted(two))
    if errors:
        raise errors[0]
    assert len(groups[0].calls) == len(groups[1].calls)
    assert sorted(hosted) == [0, 1]
    assert all(len(group.calls) - start >= 7 for group, start in zip(groups, before_last_step, strict=True))

    twin = model()
    twin(inputs[0]).square().sum().backward()
    for rank in range(2):
        for found, parameter in zip(gradients[rank], twin.parameters(), strict=True):
            assert parameter.grad is not None
            assert torch.equal(found, parameter.grad / 5)


def test_groups_are_told_apart_by_their_name() -> None:
    class Gloo:
        def name(self) -> str:
            return "gloo"

    assert is_ordered(OrderedGroup(Wires(), 0, 2))
    assert not is_ordered(Gloo())
    assert not is_ordered(object())
    assert not is_ordered(None)


def test_a_batch_of_messages_is_one_call_and_nothing_is_none() -> None:
    group = OrderedGroup(Wires(), 0, 3)
    sends, receives = [(1, torch.zeros(2)), (2, torch.zeros(3))], [(1, torch.zeros(4))]
    exchange(group, sends, receives, 7, "to test", ordered=True)
    assert group.calls == [(("receive", 1, 4), ("send", 1, 2), ("send", 2, 3))]
    for pending in exchange(group, [], [], 7, "to test", ordered=True):
        pending.wait()
    assert len(group.calls) == 1


@pytest.mark.parametrize(("peers", "named"), [([1, 1], 1), ([1, 2], None)])
def test_a_lost_rank_is_named_only_where_it_can_be_known(peers: list[int], named: int | None) -> None:
    class Broken(OrderedGroup):
        def _end_coalescing(self) -> Work:
            def fail() -> None:
                raise RuntimeError("timed out")

            return Work(fail)

    _, got = exchange(Broken(Wires(), 0, 3), [], [(peer, torch.zeros(1)) for peer in peers], 0, "to test", ordered=True)
    with pytest.raises(PeerLostError, match="another rank was lost" if named is None else "rank 1 was lost") as caught:
        got.wait()
    assert caught.value.peer == named
    assert pickle.loads(pickle.dumps(caught.value)).peer == named


def test_an_all_reduce_names_nobody() -> None:
    class Broken:
        def allreduce(self, tensors: list[torch.Tensor]) -> Work:
            def fail() -> None:
                raise RuntimeError("connection closed")

            return Work(fail)

    lane = FastReduction(Broken(), 0, 3, [Bucket(0, 64)], torch.empty(0))
    lane.open(3)
    with pytest.raises(PeerLostError, match="another rank was lost") as caught:
        lane.finish()
    assert caught.value.peer is None
