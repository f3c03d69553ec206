"""Where shards keep their snapshots in a run without a folder: where all of its processes see them."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from squall.cluster.program import Program
from squall.errors import RunError
from squall.recipe import load, override
from squall.server.snapshots import InMemory
from squall.training.asynchronous import train_asynchronously


def test_snapshots_in_memory_do_not_leave_their_process() -> None:
    with pytest.raises(RunError, match="cannot be sent to another process"):
        pickle.dumps(InMemory([]))


def test_shards_of_other_processes_share_a_temporary_folder_that_does_not_outlive_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found: list[list[str]] = []

    class Broken:
        def run(self, program: Program, *_: object) -> NoReturn:
            make: Any = pickle.loads(pickle.dumps(program.roles["shard-1"].make))
            assert make()._snapshots.newest(1).number == 0
            found.append([path.name for path in tmp_path.iterdir()])
            raise RunError("no more")

    @contextmanager
    def engine_at(_: float) -> Iterator[Any]:
        yield Broken()

    recipe = override(load("digits-downpour"), ["downpour.shards=2", "data.train_limit=200", "model.width=4"])
    with pytest.raises(RunError, match="no more"):
        train_asynchronously(None, recipe, engine_at, engine_name="x", shared=False, sinks=())
    assert [name.startswith("squall-server-") for name in found[0]] == [True]
    assert list(tmp_path.iterdir()) == []
