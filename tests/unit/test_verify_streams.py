"""Which random numbers a sample was made of: equal hashes for equal states, others for others, whatever draws."""

from __future__ import annotations

import io
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from squall.verify.observe import streams
from squall.verify.observe.contents import content, is_stored
from tests.unit.observing import Observed, observed


@pytest.fixture(autouse=True)
def watched(tmp_path: Path) -> Iterator[Observed]:
    states = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    with observed(tmp_path) as one:
        yield one
    random.setstate(states[0])
    numpy.random.set_state(states[1])
    torch.set_rng_state(states[2])


def seed(number: int) -> None:
    random.seed(number)
    numpy.random.seed(number)
    torch.manual_seed(number)


def drawn(draw: Callable[[], Any], held: list[Any] | None = None) -> tuple[tuple[int, ...], int]:
    with streams.reading(held or []) as found:
        draw()
    return found.drawn, found.made


GLOBAL: dict[str, Callable[[], Any]] = {
    "random": lambda: random.random(),
    "numpy": lambda: numpy.random.rand(),
    "torch": lambda: torch.rand(()),
    "all": lambda: (random.gauss(0, 1), numpy.random.normal(), torch.randn(3)),
}


@given(one=st.integers(0, 2**32 - 1), other=st.integers(0, 2**32 - 1))
def test_each_generator_that_a_sample_draws_from_is_told_by_itself(one: int, other: int) -> None:
    """Loader processes that share NumPy's state and not Python's do share numbers (pytorch#5059)."""
    found = []
    for number in (one, other):
        seed(1)
        random.seed(number)
        found.append(drawn(GLOBAL["all"])[0])
    assert [[state % 8 for state in states] for states in found] == [[0, 1, 2], [0, 1, 2]]
    assert (found[0][0] == found[1][0]) is (one == other)
    assert found[0][1:] == found[1][1:]


@pytest.mark.parametrize("name", GLOBAL)
@given(one=st.integers(0, 2**32 - 1), other=st.integers(0, 2**32 - 1))
def test_equal_states_and_only_they_have_equal_hashes(name: str, one: int, other: int) -> None:
    found = []
    for number in (one, other, one):
        seed(number)
        found.append(drawn(GLOBAL[name]))
    assert found[0] == found[2]
    assert (found[0] == found[1]) == (one == other)
    assert all(hashed and not made for hashed, made in found)


@pytest.mark.parametrize("name", GLOBAL)
def test_what_is_drawn_next_is_another_hash(name: str) -> None:
    seed(1)
    assert len({drawn(GLOBAL[name]) for _ in range(20)}) == 20


def test_drawing_nothing_is_zero() -> None:
    assert drawn(lambda: None) == ((), 0)
    assert drawn(lambda: torch.ones(3).sum()) == ((), 0)


HELD: dict[str, tuple[Callable[[int], Any], Callable[[Any], Any]]] = {
    "torch": (lambda number: torch.Generator().manual_seed(number), lambda one: torch.rand(2, generator=one)),
    "numpy": (numpy.random.default_rng, lambda one: one.random()),
    "numpy's older": (lambda number: numpy.random.RandomState(number), lambda one: one.rand()),
    "python": (lambda number: random.Random(number), lambda one: one.random()),
}


class Holder:
    """A data set, or a part of one."""

    def __init__(self, **parts: Any) -> None:
        self.__dict__.update(parts)

    def __call__(self) -> None:
        """As a transform is."""


PLACES: dict[str, Callable[[Any], Any]] = {
    "data set": lambda one: Holder(generator=one),
    "transform": lambda one: Holder(transform=Holder(generator=one)),
    "transforms": lambda one: Holder(transform=Holder(transforms=[Holder(), Holder(generator=one)])),
    "list": lambda one: Holder(generators=[one]),
    "several data sets": lambda one: ConcatDataset([Holder2(), Holder2(generator=one)]),
    "subset": lambda one: Subset(Holder2(transform=Holder(generator=one)), [0, 1]),
}


class Holder2(Holder):
    def __len__(self) -> int:
        return 3


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", HELD)
def test_generators_are_found_wherever_a_data_set_holds_them(kind: str, place: str) -> None:
    make, draw = HELD[kind]
    found = []
    for number in (3, 4, 3):
        generator = make(number)
        held = streams.held_by(PLACES[place](generator))
        assert [one is generator for one in held] == [True]
        found.append(drawn(lambda: draw(generator), held))  # noqa: B023
    assert found[0] == found[2] != found[1]
    assert found[0][0] != 0


def test_a_network_and_its_like_are_not_looked_into() -> None:
    model = torch.nn.Linear(2, 2)
    model.generator = torch.Generator()  # type: ignore[assignment]
    assert streams.held_by(Holder(model=model, kind=dict, table=TensorDataset(torch.ones(3)))) == []


SEEDED: dict[str, Callable[[int], Any]] = {
    "default_rng": lambda number: numpy.random.default_rng(number).random(),
    "RandomState": lambda number: numpy.random.RandomState(number).rand(),
    "Random": lambda number: random.Random(number).random(),
    "numpy.random.seed": lambda number: (numpy.random.seed(number), numpy.random.rand()),
    "random.seed": lambda number: (random.seed(number), random.random()),
    "torch.manual_seed": lambda number: (torch.manual_seed(number), torch.rand(())),
    "a tuple": lambda number: numpy.random.default_rng((1, number)).random(),
    "by keyword": lambda number: numpy.random.default_rng(seed=number).random(),
}


@pytest.mark.parametrize("name", SEEDED)
def test_seeds_that_a_sample_gives_tell_it(name: str) -> None:
    found = [drawn(lambda: SEEDED[name](number)) for number in (5, 6, 5)]  # noqa: B023
    assert found[0] == found[2] != found[1]
    assert all(not hashed and made != 0 for hashed, made in found)


def test_seeds_of_others_are_not_the_samples() -> None:
    numpy.random.default_rng(3)
    assert drawn(lambda: None) == ((), 0)
    with streams.reading([]) as found:
        torch.manual_seed(3)
        found.restart()
        torch.rand(())
    assert found.made == 0
    assert found.drawn


def test_a_generator_without_a_seed_is_not_one_seed() -> None:
    assert drawn(lambda: numpy.random.default_rng()) == ((), 0)
    assert drawn(lambda: random.Random()) == ((), 0)


def test_what_makes_and_seeds_generators_is_what_it_was() -> None:
    before = numpy.random.mtrand.RandomState(7)
    made = numpy.random.RandomState(7)
    assert made.rand() == before.rand()
    assert isinstance(before, numpy.random.RandomState)  # as scikit-learn asks
    assert isinstance(numpy.random.mtrand._rand, numpy.random.RandomState)
    assert isinstance(made, numpy.random.mtrand.RandomState)
    assert not isinstance(random.Random(1), numpy.random.RandomState)
    assert isinstance(random.SystemRandom(), random.Random)
    assert type(random.Random(1)) is random.Random

    class Own(numpy.random.RandomState):  # type: ignore[misc]
        pass

    assert isinstance(Own(3), Own)
    assert isinstance(Own(3), numpy.random.RandomState)
    assert not isinstance(made, Own)
    for one in (random.Random(3), made, before, Own):
        if one is not Own:
            assert pickle.loads(pickle.dumps(one)) is not None
            torch.save(one, io.BytesIO())
    for function in (numpy.random.default_rng, numpy.random.seed, random.seed, torch.manual_seed):
        assert pickle.loads(pickle.dumps(function)) is function  # as a spawned loader process is given it
    for kind in (numpy.random.RandomState, random.Random):
        assert pickle.loads(pickle.dumps(kind)) is kind


def test_numbers_are_those_of_an_unwatched_process(watched: Observed) -> None:
    with streams.reading([]):
        seed(11)
        inside = [random.random(), numpy.random.rand(), float(torch.rand(()))]
    seed(11)
    assert inside == [random.random(), numpy.random.rand(), float(torch.rand(()))]


SAMPLES: dict[str, Callable[[], Any]] = {
    "tensor": lambda: torch.arange(4.0),
    "bfloat16": lambda: torch.arange(4).bfloat16(),
    "complex": lambda: torch.arange(4).to(torch.complex64).conj() * 1j,
    "with gradient": lambda: torch.arange(4.0, requires_grad=True) * 2,
    "not contiguous": lambda: torch.arange(6.0).reshape(2, 3).t(),
    "bool": lambda: torch.arange(4) > 1,
    "no dimension": lambda: torch.tensor(3),
    "array": lambda: numpy.arange(4),
    "array of words": lambda: numpy.array(["a", "bc"], dtype=object),
    "words": lambda: {"text": "a b", "label": 3, "more": [1.5, b"x"]},
    "nested": lambda: (torch.ones(2), {"a": [numpy.ones(2), None]}),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_equal_samples_have_equal_contents(name: str) -> None:
    assert content(SAMPLES[name]()) == content(SAMPLES[name]()) != 0


def test_other_samples_have_other_contents() -> None:
    assert len({content(one()) for one in SAMPLES.values()}) == len(SAMPLES)
    assert content(torch.arange(4) > 1) != content(torch.arange(4) > 2)
    assert content(torch.arange(4).bfloat16()) != content((torch.arange(4) + 1).bfloat16())


def test_what_cannot_be_read_is_left() -> None:
    sparse = torch.sparse_coo_tensor(torch.tensor([[0]]), torch.tensor([1.0]), (3,), check_invariants=True)
    for one in (sparse, torch.empty(3, device="meta"), object(), None):
        assert content(one, 5) == 5
        assert is_stored(one, 0, Holder2(x=torch.ones(3, 3))) == -1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.uint8])
def test_a_sample_is_as_stored_or_altered_or_not_stored_at_all(dtype: torch.dtype) -> None:
    data = Holder2(x=(torch.arange(12.0).reshape(3, 4)).to(dtype), y=torch.arange(3))
    for index in range(3):
        assert is_stored((data.x[index], 0), index, data) == 1
        assert is_stored((data.x[index] + 1, 0), index, data) == 0
        assert is_stored((data.x[index].reshape(2, 2), 0), index, data) == -1
    assert is_stored((data.x[0], 0), 7, data) == -1
    assert is_stored((data.x[1].float() if dtype is torch.uint8 else data.x[1], 0), 1, data) == 1
    assert is_stored("a word", 0, data) == -1


def test_an_array_and_a_tensor_of_it_are_alike() -> None:
    data = Holder2(x=numpy.arange(12.0).reshape(3, 4))
    assert is_stored(torch.from_numpy(data.x[1]).requires_grad_(), 1, data) == 1
