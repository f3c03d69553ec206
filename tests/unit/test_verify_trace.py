"""A trace is read back as it was written; of each tensor the same elements are kept, also of one that is spread."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from squall.verify.observe.recorder import SAMPLED, Recorder, elements, is_users, positions, where
from squall.verify.trace import Run, read


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path, 0, 1, epochs=2, steps=24)


def test_what_is_noted_is_read_back(recorder: Recorder, tmp_path: Path) -> None:
    recorder.about["models"] = ["Net"]
    first = recorder.note("step", rates=[0.1], loss=float("nan"), far=float("inf"), numbers=numpy.int64(3))
    second = recorder.note("clip", limit=torch.tensor(2.0), odd=object(), text="über\n\x1b[31m\ud800")
    recorder.keep(first, "grad.0", numpy.arange(3.0))
    recorder.keep(first, "grad.1", numpy.zeros((0,)))
    recorder.keep(second, "grad.0", numpy.arange(6.0).reshape(2, 3)[:, ::2])
    first["late"] = True
    recorder.save()
    rank = read(tmp_path, 1).ranks[0]
    assert rank.about["models"] == ["Net"]
    assert [event["n"] for event in rank.events] == [0, 1]
    assert rank.events[0]["late"]
    assert numpy.isnan(rank.events[0]["loss"])
    assert rank.events[0]["far"] == float("inf")
    assert rank.events[0]["numbers"] == 3
    assert rank.events[1]["limit"] == 2.0
    assert rank.events[1]["odd"] == "object"
    assert rank.events[1]["text"] == second["text"]
    numpy.testing.assert_array_equal(rank.array(rank.events[0], "grad.0"), [0.0, 1.0, 2.0])  # type: ignore[arg-type]
    numpy.testing.assert_array_equal(rank.array(rank.events[1], "grad.0"), [[0.0, 2.0], [3.0, 5.0]])  # type: ignore[arg-type]
    assert rank.array(rank.events[1], "grad.1") is None


def test_saving_again_replaces_and_leaves_nothing_half(recorder: Recorder, tmp_path: Path) -> None:
    recorder.note("step")
    recorder.save()
    recorder.note("step")
    recorder.save()
    assert len(read(tmp_path, 1).ranks[0].events) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank-0.jsonl", "rank-0.safetensors"]


def test_a_rank_that_left_no_trace_is_missed(recorder: Recorder, tmp_path: Path) -> None:
    recorder.save()
    with pytest.raises(FileNotFoundError):
        read(tmp_path, 2)


def test_only_the_rank_itself_saves(recorder: Recorder, tmp_path: Path) -> None:
    recorder.here = False  # as in a process that it has forked
    recorder.save()
    assert list(tmp_path.iterdir()) == []


def test_what_loader_processes_wrote_is_joined_up_to_a_line_that_was_cut_off(
    recorder: Recorder, tmp_path: Path
) -> None:
    event = recorder.note("items", worker=None)
    recorder.keep(event, "items", numpy.arange(7)[None])
    recorder.save()
    lines = [json.dumps([worker, *range(7)]) for worker in (0, 1)]
    (tmp_path / "rank-0.items-77.jsonl").write_text(f"{lines[0]}\n{lines[1]}\n[1, 2")
    items = read(tmp_path, 1).ranks[0].items
    assert items[:, 0].tolist() == [-1, 0, 1]
    assert (items[:, 1:] == numpy.arange(7)).all()


@given(st.integers(0, 10 * SAMPLED))
def test_kept_positions_are_spread_and_never_more_than_fit(numel: int) -> None:
    at = positions(numel)
    assert len(at) == min(numel, SAMPLED)
    assert at.tolist() == sorted(set(at.tolist()))
    if numel:
        assert int(at[0]) == 0
        assert int(at[-1]) < numel
        gaps = torch.diff(at)
        assert int(gaps.max() if len(gaps) else 1) <= numel // SAMPLED + 1


KINDS: dict[str, torch.Tensor] = {
    "float32": torch.randn(3, 4),
    "bfloat16": torch.randn(3, 4).bfloat16(),
    "int": torch.arange(12).reshape(3, 4),
    "transposed": torch.randn(4, 3).t(),
    "with gradient": torch.randn(3, 4, requires_grad=True),
    "number": torch.tensor(2.0),
    "nothing": torch.zeros(0, 3),
}


@pytest.mark.parametrize("name", KINDS)
def test_elements_are_the_tensors_numbers(name: str) -> None:
    tensor = KINDS[name]
    found = elements(tensor, positions(tensor.numel()))
    assert found.dtype == numpy.float64
    numpy.testing.assert_array_equal(found, tensor.detach().double().flatten().numpy())
    found += 1  # a copy
    assert not found.size or not numpy.array_equal(found, tensor.detach().double().flatten().numpy())


def rows(indices: list[list[int]], values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.sparse_coo_tensor(torch.tensor(indices, dtype=torch.int64), values, shape, check_invariants=True)


SPARSE: dict[str, Callable[[], torch.Tensor]] = {
    "rows": lambda: rows([[5, 2, 5]], torch.randn(3, 40), (9, 40)),
    "single numbers": lambda: rows([[5, 2, 5], [1, 0, 1]], torch.randn(3), (9, 40)),
    "numbers in rows": lambda: rows([[5, 2], [1, 0]], torch.randn(2, 3), (9, 4, 3)),
    "nothing": lambda: rows([[]], torch.randn(0, 4), (9, 4)),
    "complex": lambda: rows([[5, 2]], torch.randn(2, 4, dtype=torch.complex64), (9, 4)),
}


@pytest.mark.parametrize("name", SPARSE)
def test_elements_of_sparse_tensors_are_looked_up(name: str) -> None:
    tensor = SPARSE[name]()
    whole = tensor.to_dense().flatten()
    at = positions(whole.numel())
    numpy.testing.assert_array_equal(elements(tensor, at), torch.real(whole[at]).double().numpy())


def test_the_gradient_of_a_large_embedding_is_not_made_dense() -> None:
    gradient = rows([[0, 10**12]], torch.ones(2, 4), (2 * 10**12, 4))  # 32 TB
    found = elements(gradient, positions(gradient.numel()))
    assert len(found) == SAMPLED
    assert numpy.flatnonzero(found).tolist() == [0, SAMPLED // 2]


def test_elements_of_a_transposed_tensor_are_not_copied_as_a_whole() -> None:
    at = positions(10**12)
    wide = torch.arange(10**6).expand(10**6, 10**6)  # 8 TB
    assert elements(wide, at).tolist() == (at % 10**6).tolist()


def test_numbers_are_kept_in_half_the_space_where_nothing_is_lost(recorder: Recorder, tmp_path: Path) -> None:
    event = recorder.note("step")
    kept = {
        "single": torch.tensor([0.1, -3.5, float("nan"), float("inf"), 0.0]).double().numpy(),
        "double": numpy.array([0.1, 1e300, 1e-300]),
        "places": numpy.array([2**40 + 1]),
    }
    for name, values in kept.items():
        recorder.keep(event, name, values)
    recorder.save()
    rank = read(tmp_path, 1).first
    for name, values in kept.items():
        found = rank.array(rank.events[0], name)
        assert found is not None
        numpy.testing.assert_array_equal(found.astype(values.dtype), values)
    assert recorder._arrays["0.single"].itemsize == 4


def test_of_a_complex_tensor_the_real_half_is_kept() -> None:
    tensor = torch.randn(4, dtype=torch.complex64)
    numpy.testing.assert_array_equal(elements(tensor, positions(4)), tensor.real.double().numpy())


@dataclass
class Spread:
    """What is asked of a DTensor; torch keeps those of an earlier rank of this process."""

    local: torch.Tensor
    shape: torch.Size
    device_mesh: DeviceMesh
    placements: list[Shard]

    def detach(self) -> Spread:
        return self

    def to_local(self) -> torch.Tensor:
        return self.local


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    processes=st.integers(1, 4),
    dim=st.integers(0, 2),
    large=st.booleans(),
)
def test_shards_put_together_are_the_whole_tensor(shape: list[int], processes: int, dim: int, large: bool) -> None:
    dim %= len(shape)
    shape = [size * (17 if large else 1) for size in shape]
    whole = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    at = positions(whole.numel())
    together = numpy.full(len(at), numpy.nan)
    for rank in range(processes):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=processes)
        try:
            mesh = DeviceMesh("cpu", list(range(processes)))
            local = [*whole.chunk(processes, dim), *[whole.narrow(dim, 0, 0)] * processes][rank]
            mine = elements(Spread(local, whole.shape, mesh, [Shard(dim)]), at)  # type: ignore[arg-type]
        finally:
            dist.destroy_process_group()
        held = ~numpy.isnan(mine)
        assert numpy.isnan(together[held]).all(), "two ranks hold one element"
        together[held] = mine[held]
    numpy.testing.assert_array_equal(together, whole.flatten()[at].double().numpy())


def test_what_several_ranks_hold_is_put_together_for_all(tmp_path: Path) -> None:
    for rank in range(2):
        recorder = Recorder(tmp_path, rank, 2, epochs=2, steps=24)
        recorder.about["fsdp2"] = True
        event = recorder.note("step")
        recorder.keep(event, "grad.0", numpy.where(numpy.arange(4) % 2 == rank, numpy.arange(4.0), numpy.nan))
        recorder.save()
    run: Run = read(tmp_path, 2)
    gathered = run.gathered([rank.events[0] for rank in run.ranks], "grad.0")
    assert gathered is not None
    assert [one.tolist() for one in gathered] == [[0.0, 1.0, 2.0, 3.0]] * 2
    assert run.gathered([rank.events[0] for rank in run.ranks], "grad.1") is None


def test_the_users_line_is_found_below_libraries() -> None:
    line = where()
    assert line is not None
    assert line[0] == __file__
    assert not is_users(torch.__file__)
    assert not is_users(json.__file__)
    assert not is_users("<frozen importlib._bootstrap>")


def test_numbers_kept_in_float32_are_read_in_float64(recorder: Recorder, tmp_path: Path) -> None:
    event = recorder.note("step")
    recorder.keep(event, "grad.0", elements(torch.full((3,), 1e-25), positions(3)))
    recorder.keep(event, "indices", numpy.arange(3))
    recorder.save()
    rank = read(tmp_path, 1).ranks[0]
    kept = rank.array(rank.events[0], "grad.0")
    assert kept is not None
    assert float(numpy.dot(kept, kept)) == pytest.approx(3e-50, rel=1e-6)
    assert rank.arrays["0.indices"].dtype == numpy.int64
    assert set(rank.arrays) == {"0.grad.0", "0.indices"}
    assert rank.array(rank.events[0], "local.0") is None
