"""Which batch a network is given: known by memory and by numbers, and none of it held."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from squall.verify.observe.recent import Recent
from tests.unit.observing import Observed, observed


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Observed]:
    with observed(tmp_path) as one:
        yield one


def test_the_batch_that_a_network_is_given_is_known(watched: Observed) -> None:
    net = nn.Linear(1, 1)
    train = DataLoader(TensorDataset(torch.randn(12, 1)), 4)
    valid = DataLoader(TensorDataset(torch.randn(12, 1)), 4)
    for (mine,), (other,) in zip(train, valid, strict=True):
        net(other)
        net(mine * 1.0)  # as copied to another device
    batches, calls = watched.events("batch"), watched.events("forward")
    data = [next(one for one in batches if one["n"] == call["batch"])["data"] for call in calls]
    assert data == [1, 0] * 3


class Named(nn.Module):
    """Is called by name, as networks of transformers are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, *, mask: torch.Tensor, values: torch.Tensor) -> Any:
        return self.layer(values * mask)


def test_a_batch_is_known_by_what_a_network_is_called_with_by_name(tmp_path: Path) -> None:
    data = TensorDataset(torch.ones(8, 1), torch.arange(8.0)[:, None])
    with observed(tmp_path) as observer:
        model = Named()
        ahead = list(DataLoader(data, batch_size=2))  # all are read before the first is used
        for mask, values in ahead:
            model(mask=mask, values=values)
    batches = observer.events("batch")
    calls = observer.events("forward")
    assert [call["batch"] for call in calls] == [batch["n"] for batch in batches]
    assert len({call["input"] for call in calls}) == 4  # the first of them, the mask, is the same in all


def note(number: int) -> dict[str, Any]:
    return {"n": number}


FORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "itself": lambda batch: batch,
    "a view": lambda batch: batch.view(2, -1)[:, 1:],
    "a copy": lambda batch: batch.clone(),
    "a copy in another layout": lambda batch: batch.to(memory_format=torch.channels_last, copy=True),
    "detached": lambda batch: batch.clone().requires_grad_().detach(),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_is_found_in_what_is_made_of_it(form: str) -> None:
    recent = Recent()
    batches = [torch.randn(8, 3, 8, 8) for _ in range(3)]
    for number, batch in enumerate(batches):
        recent.add(note(number), [batch, torch.arange(8)])
    assert [recent.find([FORMS[form](batch)]) for batch in batches] == [note(0), note(1), note(2)]
    assert recent.find([torch.randn(8, 3, 8, 8)]) is None


def test_a_copy_is_known_when_the_batch_is_gone() -> None:
    recent, copies = Recent(), []
    for number in range(3):
        batch = torch.randn(8, 300)
        recent.add(note(number), [batch])
        copies.append(batch.clone())  # as on another device
        del batch
    assert [recent.find([copy]) for copy in copies] == [note(0), note(1), note(2)]


def test_memory_that_was_given_back_is_no_batch() -> None:
    recent = Recent()
    batch = torch.randn(8, 300)
    place = batch.data_ptr()
    recent.add(note(0), [batch])
    del batch
    others = [torch.randn(8, 300) for _ in range(50)]
    again = [one for one in others if one.data_ptr() == place]
    assert [recent.find([one]) for one in again] == [None] * len(again)
    assert recent.find(others) is None


def test_a_view_of_a_batch_whose_own_tensor_is_gone_is_known() -> None:
    recent = Recent()
    batch = torch.randn(8, 30)
    recent.add(note(0), [batch])
    batch = batch.view(-1)
    gc.collect()
    assert recent.find([batch.add_(1)]) == note(0)


def test_batches_are_not_held(watched: Observed) -> None:
    seen = []
    for (x,) in DataLoader(TensorDataset(torch.randn(12, 5)), 4):
        seen.append(weakref.ref(x))
    del x
    assert [one() for one in seen] == [None] * 3
