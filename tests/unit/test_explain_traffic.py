"""Bytes a process sends and holds: what is predicted is what the tree reduction asks the wire for."""

import pytest
import torch

from squall.explain.traffic import traffic
from squall.reduce import Bucket, exact


class Nothing:
    def wait(self):
        return None


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("num_passes", [8, 12, 13, 32, 101])
def test_the_prediction_is_what_the_reduction_does(monkeypatch, num_passes, processes):
    length = 64 * 24 * 16  # divisible by every number of processes here, and no small bucket
    moved = {"sent": 0, "received": 0}

    def record(group, sends, receives, tag, what, *, ordered):
        moved["sent"] += sum(tensor.numel() for _, tensor in sends)
        moved["received"] += sum(tensor.numel() for _, tensor in receives)
        return Nothing(), Nothing()

    monkeypatch.setattr(exact, "exchange", record)
    found = []
    for rank in range(processes):
        moved.update(sent=0, received=0)
        reduction = exact.TreeReduction(object(), rank, processes, [Bucket(0, length)], torch.empty(0))
        for leaf in reduction.open(num_passes):
            reduction.begin_pass(leaf)
            if leaf < reduction.open(num_passes)[-1]:
                reduction.end_pass()
        reduction.finish()
        staging = sum(tensor.numel() for tensor in reduction._staging.values())
        found.append((moved["sent"], moved["received"], len(reduction.vectors) - 1, staging))
    sent, received, vectors, staging = (max(column) / length for column in zip(*found, strict=True))
    predicted = traffic(num_passes, processes, exact=True)
    assert predicted.sent == pytest.approx(sent)
    assert predicted.received == pytest.approx(received)
    assert predicted.partial_sums == round(vectors * length)
    assert predicted.staging == pytest.approx(staging)
    assert predicted.even == (len({row[:2] for row in found}) == 1)


def test_an_optimal_all_reduce_moves_two_vectors_less_two_shares():
    even = traffic(256, 8, exact=True)
    assert (even.sent, even.received) == (1.75, 1.75) == (traffic(7, 8, exact=False).sent, 2 * 7 / 8)


def test_one_process_moves_nothing_and_holds_a_stack():
    alone = traffic(256, 1, exact=True)
    assert (alone.sent, alone.received, alone.staging) == (0, 0, 0)
    assert alone.partial_sums == 7


def test_fast_holds_nothing_more():
    assert traffic(256, 8, exact=False).partial_sums == 0
