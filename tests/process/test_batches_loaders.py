"""Loader processes change the time and nothing else, and none is left behind."""

import contextlib
import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from squall.data import batches as batches_module
from squall.data.batches import read
from squall.data.order import Draw, Order
from squall.errors import InputError, RunError, UserCodeError

CPU = torch.device("cpu")
ORDER = Order(num_samples=23, global_batch_size=6, worker_batch_size=3, epochs=2, seed=3)


def all_draws() -> list[Draw]:
    plans = [ORDER.step(i) for i in range(ORDER.num_steps)]
    return [ORDER.draw(plan, j) for plan in plans for j in range(plan.num_passes)]


class Noisy:
    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> tuple[torch.Tensor, np.ndarray, int]:
        if index % 5 == 0:
            sum(range(50_000))  # uneven work, so that batches get ready out of order
        noise = torch.rand(2, 4, 3).permute(2, 0, 1), np.random.rand(2), random.random()
        return noise[0], noise[1] + noise[2], index


class Sparse(Noisy):
    def read(self, index: int, epoch: int, seed: int) -> tuple[int, int] | None:
        return None if index == 11 else (index, epoch)


def children() -> set[int]:
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            found.update(map(int, (task / "children").read_text().split()))
    return found


def everything(data, num_workers: int, **options) -> list:
    return list(read(data, all_draws(), seed=3, device=CPU, num_workers=num_workers, **options))


def noisy_collate(samples: list) -> dict:
    images = torch.stack([sample[0] for sample in samples]) + torch.rand(())
    return {"images": images.contiguous(memory_format=torch.channels_last), "ids": [sample[2] for sample in samples]}


@pytest.mark.parametrize("collate", [None, noisy_collate])
def test_any_number_of_loader_processes_gives_the_same_sequence(collate) -> None:
    """pytorch#5059: NumPy repeats in all loader processes. transformers#37932: seeds by process."""
    wanted = everything(Noisy(), 0, collate=collate)
    assert len({value for _, batch in wanted for value in torch.as_tensor(first(batch)).flatten().tolist()}) > 1000
    for num_workers in (1, 2):
        before = children()
        got = everything(Noisy(), num_workers, collate=collate)
        assert children() == before
        assert [draw.ids.tolist() for draw, _ in got] == [draw.ids.tolist() for draw in all_draws()]
        for (_, a), (_, b) in zip(wanted, got, strict=True):
            assert_same(a, b)


def first(batch):
    return batch["images"] if isinstance(batch, dict) else batch[0]


def assert_same(a, b) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()
        assert b.data_ptr() % 64 == 0
    elif isinstance(a, dict):
        assert_same(list(a.items()), list(b.items()))
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def test_samples_left_out_are_reported_from_loader_processes() -> None:
    got = everything(Sparse(), 2)
    ids = [i for draw, _ in got for i in draw.ids.tolist()]
    assert 11 not in ids
    assert len(ids) == 2 * 22
    assert [i for _, batch in got for i in batch[0].tolist()] == ids


def test_the_callers_generators_are_left_alone() -> None:
    state = torch.default_generator.get_state(), random.getstate()
    everything(Sparse(), 1)
    assert torch.equal(torch.default_generator.get_state(), state[0])
    assert random.getstate() == state[1]


@pytest.mark.parametrize("how", ["close", "drop", "raise"])
def test_no_loader_process_is_left_when_the_iterator_is_left_early(how: str) -> None:
    before = children()
    stream = read(Noisy(), all_draws(), seed=3, device=CPU, num_workers=2)
    next(stream)
    assert len(children() - before) == 2
    if how == "close":
        stream.close()
    elif how == "drop":
        del stream
    else:
        with contextlib.suppress(ZeroDivisionError):
            leave_by_error(stream)
        del stream
    assert children() == before


def leave_by_error(stream) -> None:
    for _ in stream:
        _ = 1 / 0


class Broken(Noisy):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getitem__(self, index: int) -> int:
        if index == 17:
            raise self.error
        return index


def unpicklable_error() -> Exception:
    class Odd(Exception):  # noqa: N818
        def __init__(self) -> None:
            super().__init__("odd")
            self.hook = lambda: None

    return Odd()


def test_an_error_in_a_loader_process_shows_the_users_frames_only() -> None:
    before = children()
    with pytest.raises(UserCodeError) as caught:
        everything(Broken(unpicklable_error()), 2)
    error = caught.value
    assert error.headline == "your code raised Odd at train[17]"
    (place, line), (kind, message) = error.rows
    assert place.startswith("tests/process/test_batches_loaders.py:")
    assert (line, kind, message) == ("raise self.error", "Odd", "odd")
    assert "Traceback" in error.traceback
    assert "_sample" in error.traceback
    assert children() == before


def test_batches_before_the_broken_one_are_delivered() -> None:
    delivered = []

    def collect() -> None:
        for draw, _ in read(Broken(OSError("x")), all_draws(), seed=3, device=CPU, num_workers=2):
            delivered.append(draw.ids.tolist())

    with pytest.raises(UserCodeError):
        collect()
    broken = next(i for i, draw in enumerate(all_draws()) if 17 in draw.ids)
    assert delivered == [draw.ids.tolist() for draw in all_draws()[:broken]]


def test_an_input_error_crosses_the_processes_as_it_is() -> None:
    with pytest.raises(InputError) as caught:
        everything(Broken(InputError("a.jpg does not decode", [("found", "12 bytes")], "look")), 1)
    assert (caught.value.headline, caught.value.rows) == ("a.jpg does not decode", (("found", "12 bytes"),))
    assert caught.value.hint == "look"


def test_a_killed_loader_process_is_told_clearly() -> None:
    class Suicidal(Noisy):
        def __getitem__(self, index: int) -> int:
            os.kill(os.getpid(), signal.SIGKILL)
            return index

    before = children()
    with pytest.raises(RunError, match="a loader process died"):
        everything(Suicidal(), 1)
    assert children() == before


def test_too_small_shared_memory_is_told_before_it_kills(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytorch#5040: bus errors of loader processes."""

    class Tiny:
        f_bavail, f_frsize = 1, 64

    monkeypatch.setattr(batches_module.os, "statvfs", lambda path: Tiny)
    with pytest.raises(InputError, match="/dev/shm is too small") as caught:
        everything(Noisy(), 1)
    assert "0.0 MB free" in dict(caught.value.rows)["found"]
    assert "--shm-size" in dict(caught.value.rows)["to do"]
    assert len(everything(Noisy(), 0)) == len(all_draws())
