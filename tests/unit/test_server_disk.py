"""Snapshots of shards on disk: whole or not at all, the newest whole one is found, sets belong together."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from squall.errors import InputError, RunError
from squall.server import disk
from squall.server.disk import OnDisk
from squall.server.shard import Snapshot


def snapshot(number: int, value: float = 0.0) -> Snapshot:
    tensors = {
        "weights": torch.full((64,), value),
        "states": torch.ones(5, dtype=torch.uint8),
        "counters": torch.zeros(0, dtype=torch.int64),
        "rule.0.sum": torch.arange(3.0),
    }
    return Snapshot(number, tensors, 10 * number, {"applied": number})


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    store = OnDisk(tmp_path / "server")
    store.begin([snapshot(0)])
    store.save(0, snapshot(3, 1.5))
    found = store.newest(0)
    assert (found.number, found.count, found.received) == (3, 30, {"applied": 3})
    assert all(torch.equal(found.tensors[key], tensor) for key, tensor in snapshot(3, 1.5).tensors.items())


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_file_is_passed_over(tmp_path: Path, damage: str) -> None:
    store = OnDisk(tmp_path)
    store.begin([snapshot(0, 7.0)])
    store.save(0, snapshot(1, 8.0))
    path = tmp_path / "shard-0-000001.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"truncated": path.read_bytes()[:-9], "flipped": bytes(content), "empty": b""}[damage])
    assert store.newest(0).number == 0
    (tmp_path / "shard-0-000000.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match="no snapshot of shard 0 is whole"):
        store.newest(0)


def test_a_run_goes_back_to_the_newest_set_that_all_shards_have(tmp_path: Path) -> None:
    store = OnDisk(tmp_path, keep=5)
    store.begin([snapshot(0), snapshot(0)])
    for number in (1, 2):
        for shard in (0, 1):
            store.save(shard, snapshot(number, number))
        store.note_whole(number, {"records": 100 * number})
    store.save(0, snapshot(3, 3.0))  # shard 1 did not come to it
    assert store.go_back(2) == (2, {"records": 200})
    assert [store.newest(shard).number for shard in (0, 1)] == [2, 2]
    (tmp_path / "shard-1-000002.safetensors").write_bytes(b"torn")
    assert store.go_back(2) == (1, {"records": 100})
    assert [store.newest(shard).tensors["weights"][0] for shard in (0, 1)] == [1.0, 1.0]


def test_only_the_newest_stay(tmp_path: Path) -> None:
    store = OnDisk(tmp_path, keep=2)
    for number in range(6):
        store.save(0, snapshot(number))
        store.note_whole(number, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "000004.json",
        "000005.json",
        "shard-0-000004.safetensors",
        "shard-0-000005.safetensors",
    ]


def test_a_run_that_begins_anew_finds_nothing_of_the_beginning_before(tmp_path: Path) -> None:
    """A driver was killed before its first set was whole: shard 1 had not saved yet, or the manifest was not there."""
    store = OnDisk(tmp_path)
    store.begin([snapshot(0), snapshot(0)])
    store.save(0, snapshot(1, 1.0))
    assert store.go_back(2) is None
    store.begin([snapshot(0), snapshot(0)])
    assert [store.newest(shard).number for shard in (0, 1)] == [0, 0]
    for shard in (0, 1):
        store.save(shard, snapshot(4, 4.0))
    store.note_whole(4, {"records": 400})  # of records that somebody has removed
    store.begin([snapshot(0), snapshot(0)])
    assert [store.newest(shard).number for shard in (0, 1)] == [0, 0]
    assert store.go_back(2) is None


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_shard_of_an_earlier_session_overwrites_nothing(tmp_path: Path, goes_on: bool) -> None:
    """Its machine was cut off: the driver died, another went on, and it still writes a set of a number that is used."""
    driver = OnDisk(tmp_path)
    driver.begin([snapshot(0)])
    left: OnDisk = pickle.loads(pickle.dumps(driver))
    left.save(0, snapshot(1, 1.0))
    driver.note_whole(1, {"records": 100})
    left._temporary(left._path(0, 3)).touch()  # killed while it wrote
    other = OnDisk(tmp_path)
    if goes_on:
        assert other.go_back(1) == (1, {"records": 100})
    else:
        other.begin([snapshot(0)])
    other.save(0, snapshot(2, 2.0))
    with pytest.raises(RunError, match=r"(?s)shard 0 cannot save its snapshot.*another session has begun"):
        left.save(0, snapshot(2, 9.0))
    assert other.newest(0).tensors["weights"][0] == 2.0
    assert list(tmp_path.glob(".shard-*")) == []


def test_no_set_is_whole(tmp_path: Path) -> None:
    assert OnDisk(tmp_path).go_back(1) is None


def test_a_machine_that_does_not_see_the_drivers_folder_is_named(tmp_path: Path) -> None:
    """The same path may be another folder on another machine, even one with snapshots of an older run in it."""
    store, other = OnDisk(tmp_path), OnDisk(tmp_path)
    store.begin([snapshot(0)])
    assert pickle.loads(pickle.dumps(store)).newest(0).number == 0
    other.begin([snapshot(0)])
    with pytest.raises(InputError, match=rf"(?s)does not see the run's folder.*{tmp_path} on .*another run's"):
        store.newest(0)
    (tmp_path / ".session").unlink()
    with pytest.raises(InputError, match=r"(?s)No such file.*--out with a folder of a shared file system"):
        store.newest(0)


def test_a_folder_that_may_not_be_written_is_said_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = OnDisk(tmp_path)
    store.begin([snapshot(0)])
    for number, lets in ((errno.EROFS, False), (errno.EACCES, False), (errno.ENOSPC, True)):
        monkeypatch.setattr(disk.tempfile, "TemporaryFile", Mock(side_effect=OSError(number, os.strerror(number))))
        if lets:
            assert store.newest(0).number == 0
        else:
            with pytest.raises(InputError, match=rf"(?s)may not write.*{tmp_path} on .*{os.strerror(number)}"):
                store.newest(0)


def test_a_whole_set_stays_while_a_shard_cannot_save(tmp_path: Path) -> None:
    store = OnDisk(tmp_path, keep=2)
    store.begin([snapshot(0), snapshot(0)])
    for shard in (0, 1):
        store.save(shard, snapshot(1, 1.0))
    store.note_whole(1, {"records": 100})
    for number in range(2, 6):
        store.save(0, snapshot(number))
        store._temporary(store._path(1, number)).mkdir()  # what shard 1 would write first
        with pytest.raises(RunError, match="shard 1 cannot save its snapshot"):
            store.save(1, snapshot(number))
    assert sorted(store.numbers(0)) == [1, 4, 5]
    assert store.go_back(2) == (1, {"records": 100})
