"""TensorBoard events of a run: what TensorBoard itself reads back."""

from __future__ import annotations

from pathlib import Path

import pytest

from squall.records import EpochEnded, Logged, Noted, Stepped
from squall.run.tensorboard import TensorBoard

event_file_loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    (path,) = folder.iterdir()
    found: dict[str, list[tuple[int, float]]] = {}
    for event in event_file_loader.LegacyEventFileLoader(str(path)).Load():
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_epochs_and_logged_values_are_read_back_by_tensorboard(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path / "tb")
    sink(EpochEnded(0, 11, 1.5, 0.25, 1000.0, 0.125, 0.75, 0.125, 2.0, {"loss": 1.5}, {}, {"accuracy": 0.5}))
    sink(Logged(12, 1, {"mine": 2.0}))
    sink(Noted("no number"))
    sink.close()
    found = scalars(tmp_path / "tb")
    assert found["train/loss"] == [(11, 1.5)]
    assert found["test/accuracy"] == [(11, 0.5)]
    assert found["lr"] == [(11, 0.25)]
    assert found["log/mine"] == [(12, 2.0)]


def test_of_many_steps_one_a_second_is_written(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path / "tb")
    for index in range(64):
        sink(Stepped(index, 0, 8, 1.0, 0.5, index / 16))
    sink.close()
    assert [step for step, _ in scalars(tmp_path / "tb")["step/loss"]] == [0, 16, 32, 48]


def test_nothing_is_made_before_the_first_number(tmp_path: Path) -> None:
    TensorBoard(tmp_path / "tb").close()
    assert not (tmp_path / "tb").exists()
