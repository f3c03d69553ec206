"""A set in memory once per machine: real processes, one of which is killed."""

import json
import multiprocessing
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from squall.data.shared import attach, once_per_machine, publish
from squall.errors import InputError, MissingExtraError, RunError

FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Arrays:
    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    name: str
    root: Path | None = None


def loaded() -> Arrays:
    images = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    return Arrays(images, np.arange(50), ("a", "b"), "set", Path("/sets/x"))


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def mapped(array: np.ndarray) -> tuple[str, str]:
    """Device and inode of the pages below an array: equal for equal memory in all processes."""
    address = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, device, inode, *_ = line.split()
        start, stop = (int(end, 16) for end in span.split("-"))
        if start <= address < stop:
            return device, inode
    raise AssertionError("not mapped")


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        np.arange(12, dtype=np.int64).reshape(3, 4)[:, ::2],
        np.array([b"train/a.jpg", b"b"]),
        np.float64(3.5) * np.ones(()),
        np.empty((0, 5), dtype=np.float32),
    ],
)
def test_attached_equals_published(array: np.ndarray) -> None:
    handle = publish(array)
    got = attach(handle.key())
    assert got.dtype == array.dtype
    assert got.shape == array.shape
    assert np.array_equal(got, array)
    handle.close()


def test_attached_memory_cannot_be_written_through_any_door() -> None:
    handle = publish(np.zeros(100))
    got = attach(handle.key())
    with pytest.raises(ValueError, match="read-only"):
        got[0] = 1
    with pytest.raises(PermissionError):
        os.pwrite(handle.fd, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(handle.fd, 0)
    handle.close()


def test_nothing_is_left_behind() -> None:
    before, names = descriptors(), set(os.listdir("/dev/shm"))
    handle = publish(np.zeros(100_000))
    got = attach(handle.key())
    assert set(os.listdir("/dev/shm")) == names
    handle.close()
    assert got.sum() == 0
    del got
    assert descriptors() == before


def owner(connection) -> None:
    connection.send(publish(np.arange(1000)).key())
    connection.recv()


def test_a_mapping_outlives_an_owner_killed_with_sigkill() -> None:
    here, there = FORK.Pipe()
    process = FORK.Process(target=owner, args=(there,))
    process.start()
    key = here.recv()
    array = attach(key)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert np.array_equal(array, np.arange(1000))
    with pytest.raises(RunError, match=f"process {process.pid} cannot be reached"):
        attach(key)
    process.close()


def test_a_descriptor_used_again_is_not_mistaken() -> None:
    old = publish(np.zeros(4))
    key = old.key()
    old.close()
    new = publish(np.ones(4))
    assert new.fd == old.fd
    with pytest.raises(RunError, match="cannot be reached") as caught:
        attach(key)
    assert "another file" in caught.value.rows[0][1]
    new.close()


@pytest.mark.parametrize("key", ["", "a:b:c:d:e", "1:2:3", "1:2:x:nonsense:3"])
def test_a_text_that_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(RunError, match="not a key"):
        attach(key)


def test_a_key_with_another_shape_is_refused() -> None:
    handle = publish(np.zeros(4))
    with pytest.raises(RunError, match="another size"):
        attach(handle.key()[:-1] + "5")
    handle.close()


def test_objects_are_refused() -> None:
    with pytest.raises(TypeError, match="cannot be shared"):
        publish(np.array([[], ()], dtype=object))


class Folder:
    """An exchange through a folder: a value is a file renamed into place; waiting is a pipe per reader."""

    def __init__(self, local_rank: int, pipes: list, local_size: int) -> None:
        self.local_rank, self.local_size, self.pipes = local_rank, local_size, pipes

    def put(self, key: str, value: str) -> None:
        for _, there in self.pipes:
            there.send((key, value))

    def get(self, key: str) -> str:
        here, _ = self.pipes[self.local_rank - 1]
        assert here.poll(20)
        found, value = here.recv()
        assert found == key
        return value


def member(rank: int, pipes: list, results, go) -> None:
    exchange = Folder(rank, pipes, 3)

    def load() -> Arrays:
        assert rank == 0
        return loaded()

    arrays = once_per_machine(load, exchange, "train")
    wanted = loaded()
    equal = np.array_equal(arrays.images, wanted.images) and np.array_equal(arrays.labels, wanted.labels)
    rest = (arrays.classes, arrays.name, arrays.root) == (wanted.classes, wanted.name, wanted.root)
    frozen = not arrays.images.flags.writeable
    results.put((rank, type(arrays).__name__, equal, rest, frozen, mapped(arrays.images)))
    go.wait(20)


def test_three_processes_hold_the_same_pages_once() -> None:
    pipes, results, go = [FORK.Pipe() for _ in range(2)], FORK.SimpleQueue(), FORK.Event()
    processes = [FORK.Process(target=member, args=(rank, pipes, results, go)) for rank in range(3)]
    for process in processes:
        process.start()
    told = sorted(results.get() for _ in processes)
    go.set()
    for process in processes:
        process.join()
        assert process.exitcode == 0
        process.close()
    assert [row[:5] for row in told] == [(rank, "Arrays", True, True, True) for rank in range(3)]
    assert len({row[5] for row in told}) == 1


class Scripted:
    """Both sides in one process: what is put can be got."""

    def __init__(self, local_rank: int, values: dict[str, str], local_size: int = 2) -> None:
        self.local_rank, self.local_size, self.values = local_rank, local_size, values

    def put(self, key: str, value: str) -> None:
        self.values[key] = value

    def get(self, key: str) -> str:
        return self.values[key]


@pytest.mark.parametrize(
    "error",
    [InputError("cut short", [("found", "3 bytes"), ("to do", "fetch")], "see X"), MissingExtraError("a", "b", "c")],
)
def test_an_error_while_loading_is_the_same_everywhere(error: InputError) -> None:
    def load() -> Arrays:
        raise error

    values: dict[str, str] = {}
    with pytest.raises(InputError) as first:
        once_per_machine(load, Scripted(0, values), "train")
    with pytest.raises(InputError) as second:
        once_per_machine(load, Scripted(1, values), "train")
    assert first.value is error
    assert type(second.value) is type(error)
    assert (second.value.headline, second.value.rows, second.value.hint) == (error.headline, error.rows, error.hint)


def test_any_other_exception_reaches_the_others_with_its_text() -> None:
    values: dict[str, str] = {}

    def load() -> Arrays:
        raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        once_per_machine(load, Scripted(0, values), "train")
    with pytest.raises(RunError, match="OSError: disk on fire"):
        once_per_machine(load, Scripted(1, values), "train")


def test_a_set_that_cannot_be_passed_is_told_on_both_sides() -> None:
    values: dict[str, str] = {}
    odd = Arrays(np.zeros(1), np.zeros(1), (threading.Lock(),), "x")  # type: ignore[arg-type]
    before = descriptors()
    with pytest.raises(TypeError, match="a lock cannot be passed"):
        once_per_machine(lambda: odd, Scripted(0, values), "train")
    with pytest.raises(RunError, match="a lock cannot be passed"):
        once_per_machine(lambda: odd, Scripted(1, values), "train")
    assert descriptors() == before


def test_the_owners_descriptors_live_as_long_as_its_set() -> None:
    before, values = descriptors(), {}
    mine = once_per_machine(loaded, Scripted(0, values), "train")
    other = once_per_machine(loaded, Scripted(1, values), "train")
    assert np.array_equal(mine.images, other.images)
    assert sorted(json.loads(values["data/train"])) == ["fields", "kind"]
    del mine
    with pytest.raises(RunError, match="cannot be reached"):
        once_per_machine(loaded, Scripted(1, values), "train")
    del other
    assert descriptors() == before


def test_alone_the_set_stays_as_loaded() -> None:
    values: dict[str, str] = {}
    given = loaded()
    assert once_per_machine(lambda: given, Scripted(0, values, local_size=1), "train") is given
    assert not values
