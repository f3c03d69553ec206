"""What `squall resume` takes from run.json, and what it says where that is not enough."""

import json
from pathlib import Path
from typing import Any

import pytest

from squall.cli.resume import _data_of, _started, _target
from squall.errors import InputError
from squall.recipe import load, to_toml


def started(folder: Path, values: dict[str, Any]) -> Path:
    (folder / "run.json").write_text(json.dumps(values))
    return folder


def test_the_data_sets_are_found_from_another_folder_than_that_of_the_start() -> None:
    assert _data_of({"folder": "/home/me", "data": "data"}) == Path("/home/me/data")
    assert _data_of({"folder": "/home/me", "data": "/sets"}) == Path("/sets")
    assert _data_of({"folder": "/home/me"}) is None


def test_a_program_of_ones_own_is_given_as_it_can_be_typed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the run of a program of your own(?s:.*)\n +python 'my train.py' --fast"):
        _started(started(tmp_path, {"argv": ["python", "my train.py", "--fast"]}))


def test_a_task_that_is_gone_is_named_with_where_its_path_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "recipe.toml").write_text(to_toml(load("digits")))
    values = {"target": "mine.py", "task": str(tmp_path / "mine.py"), "folder": str(tmp_path)}
    with pytest.raises(InputError, match=r"no file .*mine\.py(?s:.*)change its path in .*run\.json"):
        _target(started(tmp_path, values), values)
