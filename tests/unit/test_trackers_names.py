"""Trackers by name: which there are, what is refused, what is kept for a resumed run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest

from squall.errors import InputError, MissingExtraError
from squall.run import track_mlflow, track_wandb, trackers
from squall.run.result import Outcome
from squall.run.trackers import Known, check, make, plain


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError) as caught:
        check(["mlflow", "wand", "comet"])
    assert caught.value.render().splitlines()[0].startswith("squall: 2 unknown trackers")
    assert caught.value.rows == (
        ("wand", "not known. Near: wandb. One of: mlflow tensorboard wandb"),
        ("comet", "not known. One of: mlflow tensorboard wandb"),
    )


@pytest.mark.parametrize(("name", "extra"), [("mlflow", "mlflow"), ("wandb", "wandb"), ("tensorboard", "report")])
def test_a_package_that_is_missing_is_refused_with_the_line_that_installs_it(
    name: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        make([name], folder=tmp_path, name="one", config={}, start_step=0, warn=pytest.fail)
    assert caught.value.rows == (("to do", f"pip install 'squall-train[{extra}]'"),)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_wandb_left_is_not_taken_for_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb" / "offline-run").mkdir(parents=True)
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with pytest.raises(MissingExtraError):
        check(["wandb"])


def test_tensorboard_is_the_folder_s_own_and_a_name_given_twice_is_one_tracker(tmp_path: Path) -> None:
    names = ["wandb", "tensorboard", "mlflow", "wandb"]
    made = make(names, folder=tmp_path, name="one", config={}, start_step=0, warn=pytest.fail)
    assert [tracker.name for tracker in made] == ["wandb", "mlflow"]
    assert list(tmp_path.iterdir()) == []


def test_making_trackers_imports_and_starts_nothing(tmp_path: Path) -> None:
    import sys

    make(["wandb", "mlflow"], folder=None, name="one", config={}, start_step=0, warn=pytest.fail)
    assert {"wandb", "mlflow"}.isdisjoint(sys.modules)


def test_what_trackers_call_a_run_is_kept_by_tracker(tmp_path: Path) -> None:
    known = Known(tmp_path)
    assert known.get("mlflow") is None
    known.keep("mlflow", "7f")
    known.keep("wandb", "a1")
    again = Known(tmp_path)
    assert (again.get("mlflow"), again.get("wandb")) == ("7f", "a1")
    assert [path.name for path in tmp_path.iterdir()] == ["trackers.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"mlflow": 3}', "\x00\xff"])
def test_a_damaged_file_is_a_new_run(text: str, tmp_path: Path) -> None:
    (tmp_path / "trackers.json").write_bytes(text.encode("latin-1"))
    known = Known(tmp_path)
    assert known.get("mlflow") is None
    known.keep("mlflow", "7f")
    assert Known(tmp_path).get("mlflow") == "7f"


def test_a_run_without_a_folder_keeps_nothing() -> None:
    known = Known(None)
    known.keep("mlflow", "7f")
    assert known.get("mlflow") is None


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    Known(tmp_path / "gone").keep("mlflow", "7f")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"epochs": 30, "lr": {"base": 0.1, "warmup": {"from": "base"}}},
            {"epochs": 30, "lr.base": 0.1, "lr.warmup.from": "base"},
        ),
        ({"betas": (0.9, 0.99), "ema": None, "fuse": True}, {"betas": "[0.9, 0.99]", "fuse": True}),
        ({"root": Path("data"), "ids": [Path("a")]}, {"root": '"data"', "ids": '["a"]'}),
    ],
)
def test_a_configuration_becomes_dotted_names(values: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert plain(values) == expected


def test_each_outcome_has_a_status_in_each_tracker() -> None:
    assert set(track_mlflow._STATUS) == set(track_wandb._EXIT) == set(get_args(Outcome))


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("test/accuracy", "test/accuracy"),
        ("log/F1 (macro) @ 0.5", "log/F1 _macro_ _ 0.5"),
        ("log/a//b/../c", "log/a/b/c"),
        ("/log/é", "log/é"),
        ("..", "_"),
        ("log/" + "x" * 500, "log/" + "x" * 246),
    ],
)
def test_a_value_s_name_is_made_one_that_mlflow_takes(name: str, taken: str) -> None:
    assert track_mlflow._key(name) == taken
