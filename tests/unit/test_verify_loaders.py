"""What a loader gives under observation: the same batches, drawn from the same generators, and all of it noted."""

from __future__ import annotations

import copy
import gc
import itertools
import json
import os
import pickle
import random
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)
from torch.utils.data._utils import fetch

from squall.verify.observe.orders import cut
from squall.verify.observe.places import held_by
from squall.verify.observe.recorder import Recorder
from squall.verify.trace import read
from tests.unit.observing import Observed, observed


class Numbers(Dataset[Any]):
    """Each sample is its index, with noise from every global generator and one of its own."""

    def __init__(self, size: int = 40, *, noise: bool = False) -> None:
        self.size, self.noise = size, noise
        self.own = numpy.random.default_rng(1)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        if self.noise:
            noise = random.random() + numpy.random.rand() + float(torch.rand(())) + self.own.random()
            return index + noise
        return float(index)


class AsItGoes(Sampler[int]):
    """Draws each index when it is asked for it."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        for _ in range(self.size):
            yield int(torch.randint(self.size, ())) // 2 + random.randrange(self.size // 2)


class Endless(Sampler[int]):
    """Goes over the data again and again."""

    def __init__(self, size: int, times: int | None = None) -> None:
        self.size, self.times = size, times

    def __iter__(self) -> Iterator[int]:
        for _ in itertools.count() if self.times is None else range(self.times):
            yield from torch.randperm(self.size).tolist()


class Eager(BatchSampler):
    """Draws its whole order where it is asked for an iterator."""

    def __init__(self, size: int) -> None:
        super().__init__(range(size), 4, False)
        self.size = size

    def __iter__(self) -> Iterator[list[int]]:
        return iter(torch.randperm(self.size).split(4))  # type: ignore[arg-type]


class Resumable(Sampler[int]):
    """Goes on where it was left."""

    def __init__(self, size: int) -> None:
        self.size, self.at = size, 0

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        while self.at < self.size:
            self.at += 1
            yield self.at - 1
        self.at = 0


def seed(number: int = 0) -> None:
    random.seed(number)
    numpy.random.seed(number)
    torch.manual_seed(number)


@pytest.fixture(autouse=True)
def generators_stay() -> Iterator[None]:
    states = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(states[0])
    numpy.random.set_state(states[1])
    torch.set_rng_state(states[2])


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Observed]:
    with observed(tmp_path) as one:
        yield one


def own_generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


LOADERS: dict[str, Callable[[], DataLoader[Any]]] = {
    "stored": lambda: DataLoader(Numbers(noise=True), 7),
    "shuffled": lambda: DataLoader(Numbers(noise=True), 7, shuffle=True, drop_last=True),
    "own generator": lambda: DataLoader(Numbers(noise=True), 7, shuffle=True, generator=own_generator()),
    "one by one": lambda: DataLoader(Numbers(), batch_size=None, shuffle=True),
    "batches from a sampler": lambda: DataLoader(
        Listed(), sampler=BatchSampler(RandomSampler(range(40)), 6, False), batch_size=None
    ),
    "as it goes": lambda: DataLoader(Numbers(noise=True), 7, sampler=AsItGoes(40)),
    "batches as it goes": lambda: DataLoader(Numbers(), batch_sampler=BatchSampler(AsItGoes(40), 4, True)),
    "replaced": lambda: DataLoader(Numbers(), 7, sampler=RandomSampler(range(40), True, 90, own_generator())),
    "weighted": lambda: DataLoader(Numbers(noise=True), 7, sampler=WeightedRandomSampler([1.0] * 40, 33)),
    "eager": lambda: DataLoader(Numbers(noise=True), batch_sampler=Eager(40)),
    "resumable": lambda: DataLoader(Numbers(), 4, sampler=Resumable(40)),
    "distributed": lambda: DataLoader(Numbers(), 7, sampler=DistributedSampler(Numbers(), 3, 1)),
    "subsets": lambda: DataLoader(
        random_split(Subset(Numbers(noise=True), range(5, 35)), [20, 10])[0], 6, shuffle=True
    ),
    "listed": lambda: DataLoader(Listed(), 7, shuffle=True),
    "tuples": lambda: DataLoader(Sized(), 4, sampler=[(index, 32) for index in range(13)]),
    "words": lambda: DataLoader(Worded(), 2, sampler=list("abcde")),
    "without a length": lambda: DataLoader(Numbers(noise=True), 7, sampler=Endless(40, 2)),
    "empty": lambda: DataLoader(Numbers(), 7, sampler=[]),
    "processes": lambda: DataLoader(Numbers(), 7, shuffle=True, num_workers=2),
}


class Listed(Numbers):
    """Takes several indices at once."""

    def __getitem__(self, index: Any) -> Any:
        return [float(one) for one in index] if isinstance(index, list) else float(index)

    def __getitems__(self, indices: list[int]) -> list[float]:
        assert type(indices) is list
        return [float(index) for index in indices]


class Sized(Numbers):
    def __getitem__(self, key: Any) -> float:
        index, size = key
        return float(index * size)


class Worded(Numbers):
    def __getitem__(self, key: Any) -> float:
        return float(ord(key))


def lived(make: Callable[[], DataLoader[Any]]) -> tuple[list[Any], list[Any]]:
    """Two epochs of a training that draws between batches, the second broken off; and what comes after."""
    seed()
    loader, dropout, got = make(), nn.Dropout(0.5), []
    for most in (None, 2):
        for batch in itertools.islice(loader, most):
            got += [batch, dropout(torch.ones(5)), random.random(), numpy.random.rand()]
    return got, [float(torch.rand(())), random.random(), numpy.random.rand()]


@pytest.mark.parametrize("name", LOADERS)
def test_a_training_gets_what_it_would_get_unobserved(name: str, tmp_path: Path) -> None:
    plain = lived(LOADERS[name])
    with observed(tmp_path):
        seen = lived(LOADERS[name])
    assert repr(seen) == repr(plain)


@pytest.mark.parametrize("name", LOADERS)
def test_saving_the_trace_does_not_disturb_a_pass(name: str, tmp_path: Path) -> None:
    def go(save: Callable[[], None]) -> list[Any]:
        seed()
        loader, got = LOADERS[name](), []
        for batch in loader:
            got += [repr(batch), float(torch.rand(()))]
            if len(got) == 4:
                save()
        return got

    plain = go(lambda: None)
    with observed(tmp_path) as one:
        seen = go(one._light)
    assert seen == plain


@pytest.mark.parametrize("name", [name for name in LOADERS if name not in ("words", "without a length")])
def test_a_pass_is_noted_as_it_was_read(name: str, watched: Observed) -> None:
    seed()
    loader = LOADERS[name]()
    read: list[list[int]] = []
    make = loader.collate_fn
    if loader.num_workers == 0 and loader.batch_size is not None:
        loader.collate_fn = lambda samples: (read.append(samples), make(samples))[1]  # type: ignore[misc, func-returns-value]
    count = len(list(loader))
    if name == "empty":  # no batch was asked for in vain
        assert count == 0
        return
    trace = watched.trace()
    (event,) = trace.of("pass")
    order = trace.array(event, "indices")
    assert event["batches"] == len(event["sizes"]) == len(event["run"]) == count == len(loader)
    assert order is not None
    assert len(order) == sum(event["sizes"])
    assert event["size"] == len(loader.dataset if name != "subsets" else loader.dataset.dataset.dataset)  # type: ignore[arg-type, attr-defined]
    batches = trace.of("batch")
    assert [one["position"] for one in batches] == list(range(count))
    assert {one["of"] for one in batches} == {event["n"]}
    if read and not getattr(loader.dataset, "noise", True):
        assert [int(one) for batch in read for one in batch] == (order * (32 if name == "tuples" else 1)).tolist()
    for one in batches:
        assert len(trace.indices(one["n"])) == event["sizes"][one["position"]]  # type: ignore[arg-type]


def test_a_pass_that_was_broken_off_is_noted_whole(watched: Observed) -> None:
    data = Numbers()
    for _ in range(2):
        for place, _ in enumerate(DataLoader(data, 7, shuffle=True)):
            if place == 1:
                break
    trace = watched.trace()
    for event in trace.of("pass"):
        order = trace.array(event, "indices")
        assert order is not None
        assert sorted(order.tolist()) == list(range(40))
        assert event["sizes"] == [7] * 5 + [5]
    assert len(trace.of("batch")) == 4


def test_a_sampler_that_goes_on_where_it_was_left_is_not_read_further_than_the_script_does(watched: Observed) -> None:
    net = nn.Linear(1, 1)
    loader = DataLoader(TensorDataset(torch.randn(40, 1)), 4, sampler=Resumable(40))
    passes = []
    for _ in range(6):  # two of them are observed
        passes.append(0)
        for (x,) in loader:
            net(x).sum().backward()
            passes[-1] += 1
            if passes[-1] == 7:
                break
    assert not watched.recorder.observing
    assert passes == [7, 3] * 3


def test_what_is_saved_on_the_way_says_nothing_of_passes_that_are_not_whole(watched: Observed) -> None:
    data = Numbers()
    list(DataLoader(data, 7))
    first = next(DataLoader(data, 7, shuffle=True).__iter__())
    watched._light()
    whole, partly = read(watched.recorder.folder, 1).first.of("pass")
    assert (whole["size"], partly["size"]) == (40, -1)
    assert partly["sizes"] == [len(first)]
    whole, partly = watched.trace().of("pass")
    assert (whole["size"], partly["size"]) == (40, 40)
    assert sum(partly["sizes"]) == 40


def test_orders_of_passes_that_are_over_are_not_held_twice(watched: Observed) -> None:
    loader = DataLoader(Numbers(), 7)
    iterator = iter(loader)
    for _ in iterator:
        pass
    assert iterator._sampler_iter._flat == []  # type: ignore[attr-defined]
    watched.recorder.observing = False
    for _ in iter(loader):
        pass
    later = watched.events("pass")[-1]
    assert later["sizes"] == [7] * 5 + [5]
    assert watched.array(later, "indices") is None


def test_loader_processes_write_once_for_each_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with observed(tmp_path) as watched:
        opened: list[Path] = []
        write = Path.open
        monkeypatch.setattr(
            Path, "open", lambda path, *args, **named: (opened.append(path), write(path, *args, **named))[1]
        )
        watched.recorder.here = False  # as in a process that it has forked
        fetcher = fetch._MapDatasetFetcher(Numbers(noise=True), True, list, False)
        for indices in ([0, 1, 2], [3, 4, 5]):
            fetcher.fetch(indices)  # type: ignore[no-untyped-call]
    assert [path.name for path in opened] == [f"rank-0.items-{os.getpid()}.jsonl"] * 2
    lines = opened[0].read_text().splitlines()
    indices = [json.loads(line)[3] for line in lines]
    assert indices == sorted(indices)  # several rows, where a sample draws from several generators
    assert set(indices) == set(range(6))


def test_a_sampler_without_an_end_is_read_no_further_than_needed(watched: Observed) -> None:
    sampler = Endless(40)
    for place, _ in enumerate(DataLoader(Numbers(), 7, sampler=sampler)):
        if place == 20:
            break
    trace = watched.trace()
    (event,) = trace.of("pass")
    assert event["endless"]
    assert len(trace.of("batch")) == 21 == len(event["sizes"])


def test_a_sampler_without_a_length_that_ends_is_whole(watched: Observed) -> None:
    list(DataLoader(Numbers(), 7, sampler=Endless(40, 2)))
    trace = watched.trace()
    (event,) = trace.of("pass")
    assert not event.get("endless")
    assert numpy.bincount(trace.array(event, "indices")).tolist() == [2] * 40  # type: ignore[arg-type]


def test_a_pass_without_an_end_is_seen_for_as_long_as_epochs_would_be(watched: Observed) -> None:
    net = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    data = TensorDataset(torch.randn(40, 1))
    for (x,) in itertools.islice(DataLoader(data, 4, sampler=Endless(40)), 3 * 24):
        assert watched.recorder.observing == (watched.updates.steps < 2 * 24)
        net(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(watched.trace().steps) == 2 * 24


def test_keys_that_are_no_places_say_nothing_of_coverage(watched: Observed) -> None:
    list(LOADERS["words"]())
    (event,) = watched.events("pass")
    assert event["size"] == -1


@given(batches=st.integers(0, 5000), steps=st.integers(1, 60), processes=st.integers(1, 8), plain=st.booleans())
def test_a_cut_keeps_remainders(batches: int, steps: int, processes: int, plain: bool) -> None:
    recorder = Recorder(Path(), 0, processes, epochs=2, steps=steps)
    kept = cut(batches, recorder, plain=plain)
    share, run = (-(-batches // processes), -(-kept // processes)) if plain else (batches, kept)
    assert run <= share
    assert run % steps == share % steps
    assert run >= min(share, steps)
    assert run <= 2 * steps
    if kept < batches and plain:
        assert kept % processes == 0
    assert cut(kept, recorder, plain=plain) == kept
    for window in (2, 3, 4, 6, 8, 12, 24):
        if steps % window == 0:
            assert run % window == share % window


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("batches", [9, 10, 11, 19, 40, 101])
@pytest.mark.parametrize("dealt", [False, True])
def test_the_length_of_a_loader_is_what_it_gives(batches: int, processes: int, dealt: bool, tmp_path: Path) -> None:
    with observed(tmp_path, processes=processes, steps=5) as watched:
        data = Numbers(3 * batches - 1)
        sampler = DistributedSampler(data, processes, 0) if dealt else None
        loader = DataLoader(data, 3, shuffle=None if dealt else True, sampler=sampler)
        length = len(loader)
        got = list(loader)
        assert len(got) == length
        watched.recorder.save()
        (event,) = watched.events("pass")
        order = watched.array(event, "indices")
        run = event["run"]
        whole = len(loader.batch_sampler)  # type: ignore[arg-type]
        assert event["batches"] == whole
        assert run == sorted(set(run))
        assert run[0] == 0
        assert run[-1] == whole - 1  # the last, short batch is run
        begins = numpy.cumsum([0, *event["sizes"]])
        expected = [order[begins[place] : begins[place + 1]].astype(float).tolist() for place in run]
        assert [batch.tolist() for batch in got] == expected
        if not dealt:
            assert sorted(order.tolist()) == list(range(len(data)))
        assert [one["position"] for one in watched.events("batch")] == run


def test_two_passes_over_one_loader_at_once_are_told_apart(watched: Observed) -> None:
    loader = DataLoader(Numbers(), 8, shuffle=True)
    for one, other in zip(loader, loader, strict=True):
        assert one.shape == other.shape
    first, second = watched.events("pass")
    assert [event["of"] for event in watched.events("batch")] == [first["n"], second["n"]] * 5


def test_loaders_made_for_one_pass_share_their_data(watched: Observed) -> None:
    data = TensorDataset(torch.arange(12.0))
    for _ in range(3):
        list(iter(DataLoader(data, 4)))
    one, other = random_split(Numbers(), [30, 10])
    list(DataLoader(one, 10))
    list(DataLoader(Subset(other, [0, 2]), 10))
    assert [(event["data"], event["pass_"]) for event in watched.events("pass")] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 0),
        (1, 1),
    ]


def test_a_loader_is_freed_when_it_is_over(watched: Observed) -> None:
    loader = DataLoader(Numbers(), 8)
    list(loader)
    gone = weakref.ref(loader)
    del loader
    gc.collect()
    assert gone() is None


def test_a_loader_holds_nothing_of_the_observer(tmp_path: Path) -> None:
    plain = DataLoader(Numbers(), 8, shuffle=True)
    list(plain)
    with observed(tmp_path):
        loader = DataLoader(Numbers(), 8, shuffle=True)
        list(loader)
        assert vars(loader).keys() == vars(plain).keys()
        assert type(loader.sampler) is RandomSampler
        assert type(loader.batch_sampler) is BatchSampler
        for one in (copy.copy(loader), copy.deepcopy(loader), pickle.loads(pickle.dumps(loader))):
            assert len(one) == len(list(one)) == 5
        assert loader._index_sampler.batch_size == 8  # what a sampler has is found on what stands for it
        with pytest.raises(AttributeError):
            _ = loader._index_sampler.no_such_thing
    with observed(tmp_path), pytest.raises(TypeError):
        len(DataLoader(Numbers(), 8, sampler=Endless(40)))


@pytest.mark.parametrize("persistent", [False, True])
def test_loader_processes_say_of_which_pass_a_sample_is(watched: Observed, persistent: bool) -> None:
    data = Numbers(12, noise=True)
    loader = DataLoader(data, 4, num_workers=2, persistent_workers=persistent)
    for _ in range(3):
        list(loader)
    del loader
    items = watched.trace().items
    assert {(row[2], row[3]) for row in items.tolist()} == {(pass_, at) for pass_ in range(3) for at in range(12)}
    assert {row[0] for row in items.tolist()} == {0, 1}
    assert all(row[4] for row in items.tolist())


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_each_sample_below_subsets_is_looked_at(watched: Observed, levels: int) -> None:
    data: Any = Numbers(12, noise=True)
    for _ in range(levels):
        data = Subset(data, list(range(len(data)))[1:])
    list(DataLoader(data, 4))
    items = watched.trace().items
    assert list(dict.fromkeys(items[:, 3].tolist())) == list(range(levels, 12))
    assert (items[:, 4] != 0).all()
    assert len(set(items[:, 4].tolist())) == len(items) >= 12 - levels


def test_networks_under_transforms_are_left_alone(watched: Observed) -> None:
    net = nn.Linear(3, 1)
    (x, y), *_ = DataLoader(TensorDataset(torch.randn(4, 3), torch.randn(4, 1)), 4)
    weights = {name: one.detach() for name, one in net.named_parameters()}

    def loss(weights: Any, x: Any, y: Any) -> Any:
        return (torch.func.functional_call(net, weights, (x[None],)) - y).square().mean()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, x, y)
    assert each["weight"].shape == (4, 1, 3)
    with torch.device("meta"):
        nn.Linear(3, 1)(torch.empty(2, 3))
    assert not watched.events("forward")


def test_the_part_of_a_data_set_that_a_loader_can_give_is_known() -> None:
    data = Numbers(20)
    odd = Subset(data, list(range(1, 20, 2)))
    assert held_by(data) is None
    assert held_by(odd).tolist() == list(range(1, 20, 2))  # type: ignore[union-attr]
    assert held_by(Subset(odd, torch.tensor([3, 0]))).tolist() == [1, 7]  # type: ignore[arg-type, union-attr]
    assert held_by(Subset(Subset(odd, []), [])).tolist() == []  # type: ignore[union-attr]
    assert held_by(Subset(Subset(data, ["a", "b"]), [1])) is None  # type: ignore[arg-type]
