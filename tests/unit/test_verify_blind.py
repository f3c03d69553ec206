"""The observer ends no training: its failures are noted, the script's own exceptions pass, and code can be compiled."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from squall.verify.observe.blind import Guard, watching
from squall.verify.observe.recorder import Recorder
from tests.unit.observing import Observed, observed


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Observed]:
    with observed(tmp_path) as one:
        yield one


class Hooks:
    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    @watching(-1)
    def size(self, thing: Any) -> int:
        """Of a thing."""
        return len(thing)


@pytest.fixture
def hooks(tmp_path: Path) -> Hooks:
    return Hooks(Recorder(tmp_path, 0, 1, epochs=2, steps=24))


def test_a_hook_that_fails_is_noted_once_and_counted(hooks: Hooks) -> None:
    assert [hooks.size(one) for one in ("ab", 3, None, "abc")] == [2, -1, -1, 3]
    (event,) = hooks.recorder.events("blind")
    assert event["hook"] == "Hooks.size"
    assert event["error"] == "TypeError: object of type 'int' has no len()"
    assert event["times"] == 2
    assert event["where"][0] == __file__
    assert (hooks.size.__name__, hooks.size.__doc__) == ("size", "Of a thing.")


def test_lines_that_fail_are_left_and_those_after_them_are_run(hooks: Hooks) -> None:
    done = []
    with Guard(hooks.recorder, "rows"):
        done.append(1 / len(done))
    done.append(1)
    assert done == [1]
    assert [event["hook"] for event in hooks.recorder.events("blind")] == ["rows"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_who_asks_the_script_to_end_is_heard(hooks: Hooks, kind: type[BaseException]) -> None:
    class Asks:
        def __len__(self) -> int:
            raise kind

    with pytest.raises(kind):
        hooks.size(Asks())
    with pytest.raises(kind), Guard(hooks.recorder, "rows"):
        raise kind
    assert not hooks.recorder.events("blind")


# what scripts give to networks and take from loaders


def sparse(rows: int = 4) -> torch.Tensor:
    return torch.eye(rows).to_sparse()


def nested() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)])


def jagged() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)], layout=torch.jagged)


class Summed(nn.Module):
    """Takes anything."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return self.weight * 2


STRANGE: dict[str, Callable[[], torch.Tensor]] = {
    "sparse": sparse,
    "rows": lambda: sparse().to_sparse_csr(),
    "nested": nested,
    "jagged": jagged,
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(4, 3), 0.1, 0, torch.quint8),
    "meta": lambda: torch.empty(4, 3, device="meta"),
    "number": lambda: torch.tensor(3.0),
    "nothing": lambda: torch.empty(0, 3),
}


class Given(IterableDataset[Any]):
    """Gives what it is made of."""

    def __init__(self, things: list[Any]) -> None:
        self.things = things

    def __iter__(self) -> Iterator[Any]:
        yield from self.things


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", STRANGE)
def test_any_tensor_can_be_read_and_computed(name: str, watched: Observed) -> None:
    made = STRANGE[name]
    model = Summed()
    model(made())
    got = list(DataLoader(Given([made(), made()]), batch_size=None))
    for one in got:
        model(one)
    assert len(got) == 2
    assert not [event for event in watched.events("blind") if not event["hook"].startswith("Models")]
    assert [event["position"] for event in watched.events("batch")] == [0, 1]


def test_a_network_that_multiplies_sparse_batches_is_watched_as_any_other(watched: Observed) -> None:
    model = nn.Linear(4, 2)
    for one in DataLoader(Given([sparse()] * 3), batch_size=None):
        torch.sparse.mm(one, model.weight.t()).sum().backward()
        model(one.to_dense())
    assert len(watched.events("batch")) == len(watched.events("forward")) == 3
    assert watched.events("blind") == []


def test_batches_that_are_spread_over_ranks_are_known(watched: Observed) -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        mesh = DeviceMesh("cpu", [0, 1])
        ahead = [x for (x,) in DataLoader(TensorDataset(torch.randn(12, 3)), 4)]
        model = Summed()
        for x in ahead:
            model(DTensor.from_local(x, mesh, [Shard(0)]))
            model(distribute_tensor(x, mesh, [Replicate()]))
    finally:
        dist.destroy_process_group()
    assert [event["batch"] for event in watched.events("forward")] == [
        batch["n"] for batch in watched.events("batch") for _ in range(2)
    ]
    assert watched.events("blind") == []


class Keyed(Dataset[Any]):
    """Samples by their names."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, key: str) -> float:
        return float(ord(key))


def test_a_subset_of_keys_is_read_and_says_nothing_of_coverage(watched: Observed) -> None:
    part = Subset(Keyed(), ["b", "d", "f"])  # type: ignore[arg-type]
    got = [batch.tolist() for batch in DataLoader(part, 2)]
    assert got == [[98.0, 100.0], [102.0]]
    (event,) = watched.events("pass")
    assert event["size"] == -1
    assert event["sizes"] == [2, 1]
    assert watched.events("blind") == []


class Failing(Dataset[Any]):
    """Samples, lengths and orders that fail as the script's own code does."""

    def __len__(self) -> int:
        raise LookupError("no length")

    def __getitem__(self, index: int) -> float:
        if index == 2:
            raise ZeroDivisionError("the sample")
        return float(index)


def test_what_fails_in_the_scripts_own_code_comes_to_the_script(watched: Observed) -> None:
    def order() -> Iterator[int]:
        yield from (0, 1, 3)
        raise LookupError("the order")

    with pytest.raises(ZeroDivisionError, match="the sample"):
        list(DataLoader(Failing(), 2, sampler=[0, 1, 2]))  # type: ignore[arg-type]
    with pytest.raises(LookupError, match="the order"):
        list(DataLoader(Failing(), 2, sampler=order()))  # type: ignore[arg-type]
    assert watched.events("blind") == []


def test_whatever_of_ours_fails_batches_are_those_that_would_be_given(
    watched: Observed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **named: Any) -> Any:
        raise RuntimeError("ours")

    data = TensorDataset(torch.arange(40.0))
    torch.manual_seed(1)
    plain = [batch.tolist() for (batch,) in DataLoader(data, 4, shuffle=True)]
    for name in ("streams.held_by", "streams._states", "contents.content", "contents.is_stored", "orders.place_of"):
        monkeypatch.setattr(f"squall.verify.observe.{name}", fail)
    for name in ("root", "note_pass"):
        monkeypatch.setattr(watched.loaders, name, fail)
    model = nn.Linear(1, 1)
    torch.manual_seed(1)
    got = []
    for (batch,) in DataLoader(data, 4, shuffle=True):
        got.append(batch.tolist())
        model(batch[:, None])
    assert got == plain
    assert len(watched.events("blind")) >= 4


# processes, and code that is compiled


def test_a_forked_process_is_not_the_rank(watched: Observed) -> None:
    assert watched.recorder.here
    child = os.fork()
    if not child:
        os._exit(1 if watched.recorder.here else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert watched.recorder.here


@pytest.mark.filterwarnings("ignore")
def test_a_training_can_be_compiled_whole(watched: Observed) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return model(x).square().mean()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    for _ in range(3):
        optimizer.zero_grad()
        compiled(torch.ones(2, 4)).backward()
        optimizer.step()
    assert len(watched.trace().steps) == 3


def test_compiled_code_can_ask_whether_it_is_the_rank(watched: Observed) -> None:
    torch._dynamo.reset()
    asked = torch.compile(lambda x: x + 1 if watched.recorder.here else x, fullgraph=True, backend="eager")
    assert asked(torch.zeros(())) == 1
    watched.recorder.here = False
    assert asked(torch.zeros(())) == 0


def test_an_exchange_can_be_compiled(watched: Observed) -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    torch._dynamo.reset()

    def double(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        dist.all_reduce(y)
        return y

    try:
        assert torch.compile(double, fullgraph=True, backend="eager")(torch.ones(2)).tolist() == [2.0, 2.0]
    finally:
        dist.destroy_process_group()
