"""Right uses of data and networks that are like wrong ones: parts of a data set, networks only asked, modes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DistributedSampler, RandomSampler, Subset, SubsetRandomSampler, TensorDataset

from squall.verify.observe.orders import listed_by
from tests.unit.judging import DATA, Judge, loader, loop, network, twice


@pytest.fixture
def judged(tmp_path: Path) -> Judge:
    return Judge(tmp_path)


# parts of a data set


def split(train: Sequence[int], held_out: Sequence[int]) -> None:
    model = network()
    loop(
        model,
        torch.optim.SGD(model.parameters(), 0.01),
        batches=loader(sampler=SubsetRandomSampler(train)),
        after=[lambda: measure(model, loader(sampler=SubsetRandomSampler(held_out)))],
    )


@torch.no_grad()
def measure(model: nn.Module, batches: Any) -> None:
    model.eval()
    for x, _ in batches:
        model(x)
    model.train()


HELD = TensorDataset(torch.randn(16, 8), torch.randint(0, 3, (16,)))
ORDER = torch.randperm(64, generator=torch.Generator().manual_seed(1)).tolist()


@pytest.mark.parametrize("check", ["epoch coverage", "epoch order", "evaluation"])
def test_the_part_that_a_sampler_was_given_is_the_data(judged: Judge, check: str) -> None:
    assert judged(check, lambda: split(ORDER[:48], ORDER[48:])).outcome == "ok"
    shares = [lambda r=r: split(ORDER[:48][r::2], ORDER[48:][r::2]) for r in range(2)]
    found = judged(check, *shares)
    assert found.outcome == ("note" if check == "evaluation" else "ok")  # ranks exchange nothing of it
    assert check == "epoch order" or "48" in found.says or "16" in found.says


class Dealt(DistributedSampler[Any]):
    """Deals out another sampler's order, which it draws anew for each pass, also for one that goes on."""

    def __iter__(self) -> Iterator[int]:
        self.order = torch.randperm(len(self.dataset)).tolist()  # type: ignore[arg-type]
        return (self.order[place] for place in super().__iter__())


def test_a_first_look_at_some_batches_is_no_evaluation(judged: Judge) -> None:
    def looked(rank: int) -> None:
        model, batches = network(), loader(sampler=Dealt(DATA, num_replicas=2, rank=rank, shuffle=False))
        measure(model, itertools.islice(batches, 2))
        loop(
            model,
            torch.optim.SGD(model.parameters(), 0.01),
            batches=loader(HELD),
            after=[lambda: measure(model, batches)],
        )

    found = judged("evaluation", *(lambda r=r: looked(r) for r in range(2)))
    assert found.outcome == "note"  # ranks exchange nothing of what they measure
    assert found.says.startswith("64 samples are read once, and ranks exchange nothing of it")
    assert found.says.endswith("one rank's 32")


def test_shares_that_are_padded_to_be_equal_are_no_splits_of_their_own(judged: Judge) -> None:
    padded = [*ORDER[:47], ORDER[0]]
    found = judged("epoch coverage", *(lambda r=r: split(padded[r::2], ORDER[48:]) for r in range(2)))
    assert found.outcome != "FAIL"


def test_ranks_that_split_for_themselves_are_named(judged: Judge) -> None:
    found = judged("epoch coverage", lambda: split(ORDER[:32], ORDER[48:]), lambda: split(ORDER[8:40], ORDER[48:]))
    assert found.outcome == "FAIL"
    assert "splits the data set for itself" in found.says


def test_an_evaluation_on_parts_that_ranks_hold_out_for_themselves_is_not_a_second_fault(judged: Judge) -> None:
    other = [*ORDER[16:], *ORDER[:16]]
    ranks = [lambda order=order: split(order[:56], order[56:]) for order in (ORDER, other)]
    assert judged("epoch coverage", *ranks).outcome == "FAIL"
    found = judged("evaluation", *ranks)
    assert (found.outcome, found.says) == ("note", "each rank holds out samples of its own: see epoch coverage")


def sampled(make: Callable[[], Any]) -> None:
    model = network()
    loop(model, torch.optim.SGD(model.parameters(), 0.01), batches=loader(sampler=make()))


def test_what_one_process_leaves_out_is_its_choice(judged: Judge) -> None:
    found = judged("epoch coverage", lambda: sampled(lambda: RandomSampler(DATA, num_samples=24)))
    assert (found.outcome, "24 of 64" in found.says) == ("note", True)


def test_shares_of_shares_are_named(judged: Judge) -> None:
    class Cut(DistributedSampler[Any]):
        def __iter__(self) -> Iterator[int]:
            return iter(list(super().__iter__())[self.rank :: self.num_replicas])

    ranks = [lambda r=r: sampled(lambda: Cut(DATA, num_replicas=2, rank=r)) for r in range(2)]
    found = judged("epoch coverage", *ranks)
    assert (found.outcome, "32 of 64" in found.says) == ("FAIL", True)


def test_indices_that_a_sampler_does_not_keep_to_say_nothing(judged: Judge) -> None:
    class Other(RandomSampler):
        def __init__(self) -> None:
            super().__init__(DATA)
            self.indices = [0, 1, 2]

    assert "64 samples" in judged("epoch coverage", lambda: sampled(Other)).says


@pytest.mark.parametrize("indices", [[[0, 1], [2]], ["a"], [0.5], 3, None, [70]])
def test_a_list_that_is_no_list_of_places_is_none(indices: Any) -> None:
    sampler = SubsetRandomSampler([0])
    sampler.indices = indices
    assert listed_by(sampler, Subset(DATA, range(32))) is None


def test_an_order_that_comes_again_is_said_with_the_samplers_epoch(judged: Judge) -> None:
    found = judged("epoch order", lambda: sampled(lambda: DistributedSampler(DATA, num_replicas=1, rank=0)))
    assert found.outcome == "FAIL"
    assert "epoch is 0 in both" in found.found


# parameters and mode


def beside(how: str) -> None:
    """A network is trained by what another says of its output."""
    model, judge = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), nn.Linear(8, 8)
    held = {"forgotten": model[0].parameters, "replaced": lambda: [*model.parameters(), *judge.parameters()]}
    optimizer = torch.optim.SGD(held.get(how, model.parameters)(), 0.01)
    if how == "replaced":
        judge = nn.Linear(8, 8)
    for x, _ in twice():
        loss = F.mse_loss(judge(model(x)), x)
        if how != "emptied":
            optimizer.zero_grad()
        loss.backward()
        if how == "emptied":
            optimizer.zero_grad()
        optimizer.step()


def test_a_network_that_is_only_asked_may_stay_as_it_is(judged: Judge) -> None:
    found = judged("parameters", lambda: beside("right"))
    assert (found.outcome, "no tensor of Linear is updated" in found.says) == ("note", True)


def test_layers_that_no_optimiser_holds_are_named(judged: Judge) -> None:
    assert (
        "2 of 6 tensors get gradients and no update: 1.weight" in judged("parameters", lambda: beside("forgotten")).says
    )
    assert "2 of 8 tensors get gradients" in judged("parameters", lambda: beside("replaced")).says


def test_gradients_that_are_emptied_too_early_are_not_an_optimisers_fault(judged: Judge) -> None:
    assert judged("parameters", lambda: beside("emptied")).outcome == "--"


def asked(learned: bool) -> None:
    """A teacher in training mode is asked about data without labels, that the student learns from, or not."""
    model, teacher, others = network(), network(), TensorDataset(torch.randn(64, 8))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for (x, y), (other,) in itertools.chain(*(zip(loader(), loader(others), strict=True) for _ in range(2))):
        with torch.no_grad():
            wanted = teacher(other)
        loss = F.cross_entropy(model(x), y) + (F.mse_loss(model(other), wanted) if learned else 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_data_that_is_learned_from_is_no_evaluation(judged: Judge) -> None:
    assert judged("mode", lambda: asked(learned=True)).outcome == "ok"
    assert "evaluated in training mode" in judged("mode", lambda: asked(learned=False)).says


def quiet_from(batch: int) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for epoch in range(2):
        for number, (x, y) in enumerate(loader()):
            if epoch and number == batch:
                model.eval()
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()


def test_train_at_an_epochs_begin_is_advised_only_where_it_mends(judged: Judge) -> None:
    early, late = (judged("mode", lambda n=number: quiet_from(n)) for number in (0, 3))
    assert [one.outcome for one in (early, late)] == ["FAIL", "FAIL"]
    assert not late.edits
