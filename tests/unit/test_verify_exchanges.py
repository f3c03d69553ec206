"""What ranks tell each other: noted while it is observed, with results where there are some already."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.unit.observing import Observed, observed


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Observed]:
    with observed(tmp_path) as one:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
        try:
            yield one
        finally:
            dist.destroy_process_group()


def test_means_of_every_kind_are_taken(watched: Observed) -> None:
    torch.func.vmap(lambda row: row.mean())(torch.randn(3, 4))
    torch.randn(3, dtype=torch.complex64).mean()
    torch.empty(3, device="meta").mean()
    assert pickle.loads(pickle.dumps(torch.Tensor.mean)) is torch.Tensor.mean
    assert watched.exchanges._means == []
    mean = float(torch.tensor([1.0, 3.0]).mean())
    assert watched.exchanges._means == [mean] == [2.0]


CALLS: dict[str, tuple[Callable[[torch.Tensor], Any], bool]] = {
    "at once": (lambda given: dist.all_reduce(given), True),
    "by position": (lambda given: dist.all_reduce(given, dist.ReduceOp.MAX, None, False), True),
    "under way": (lambda given: dist.all_reduce(given, async_op=True), False),
    "under way, by position": (lambda given: dist.all_reduce(given, dist.ReduceOp.MAX, None, True), False),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_result_is_noted_where_it_is_there(name: str, watched: Observed) -> None:
    call, there = CALLS[name]
    call(torch.tensor([1.0, 2.0]))
    (event,) = watched.events("exchange")
    assert event["values"] == [1.0, 2.0]
    assert ("result" in event) is there
    assert event["op"] == ("MAX" if "position" in name else "SUM")


def test_what_is_no_plain_tensor_is_exchanged_as_ever(watched: Observed) -> None:
    dist.all_reduce(torch.ones(3, dtype=torch.complex64))
    dist.all_gather([torch.zeros(2), torch.zeros(2)], torch.ones(2))
    gathered: list[Any] = [None, None]
    dist.all_gather_object(gathered, {"a": 1})
    assert [("values" in event) for event in watched.events("exchange")][:2] == [False, True]
    assert watched.events("blind") == []


def test_afterwards_nothing_is_noted(watched: Observed) -> None:
    watched.recorder.observing = False
    dist.all_reduce(torch.ones(2))
    torch.tensor([1.0, 3.0]).mean()
    assert watched.events("exchange") == []
    assert watched.exchanges._means == []
