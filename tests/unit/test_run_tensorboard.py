"""TensorBoard events of a run: what TensorBoard itself reads back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from squall.records import EpochEnded, Logged, Noted, Pushed, Started, Stepped
from squall.run.tensorboard import TensorBoard

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


STARTED = Started(
    "digits-downpour", "", 3, 0, {}, 100, 10, 10, 16, 16, 160, 100, strategy="downpour", replicas=3, shards=2
)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """By tag, (step, value) as TensorBoard shows them, of all files of the folder together."""
    found = accumulator.EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def epoch(index: int, step: int, accuracy: float) -> EpochEnded:
    spent = {"data": 0.125, "compute": 0.75, "wait": 0.125}
    return EpochEnded(index, step, 1.5, 0.25, 1000.0, spent, 2.0, 0.5, (), {"loss": 1.5}, {}, {"accuracy": accuracy})


def test_epochs_and_logged_values_are_read_back_by_tensorboard(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path / "tb")
    sink(Logged(12, 1, {"mine": 2.0}))
    sink(epoch(0, 11, 0.5))
    sink(Noted("no number"))
    sink.close()
    found = scalars(tmp_path / "tb")
    assert found["train/loss"] == [(11, 1.5)]
    assert found["test/accuracy"] == [(11, 0.5)]
    assert found["lr"] == [(11, 0.25)]
    assert found["log/mine"] == [(11, 2.0)]
    assert found["speed/compute_seconds"] == [(11, 0.75)]
    assert found["speed/evaluation_seconds"] == [(11, 0.5)]


def test_of_many_steps_one_a_second_is_written(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path / "tb")
    for index in range(64):
        sink(Stepped(index, 0, 8, 1.0, 0.5, index / 16))
    sink.close()
    assert [step for step, _ in scalars(tmp_path / "tb")["step/loss"]] == [0, 16, 32, 48]


def pushed(settled: int, loss: float, staleness: list[int], samples: int = 16) -> Pushed:
    return Pushed(settled / 1000, "replica-0", settled - 1, 1, samples, loss, staleness, 0, 0.5, 0.125, 3, settled)


def test_pushes_are_scalars_at_the_minibatch_that_they_settled(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path / "tb")
    sink(replace(STARTED, num_steps=4))
    for push in (pushed(1, 2.0, [0, 2]), pushed(2, 1.0, [-1, -1]), pushed(4, 0.5, [4, -1])):
        sink(push)
    sink.close()
    found = scalars(tmp_path / "tb")
    assert found["push/loss"] == [(0, 2.0), (1, 1.0), (3, 0.5)]
    assert found["push/staleness"] == [(0, 1.0), (3, 4.0)]
    assert found["push/stalled"] == [(0, 0.25), (1, 0.25), (3, 0.25)]
    assert found["push/replicas"] == [(0, 3.0), (1, 3.0), (3, 3.0)]


@pytest.mark.parametrize("start_step", [0, 5000])
def test_many_pushes_are_a_thousand_points_that_average_them_however_fast_the_clock(
    tmp_path: Path, start_step: int
) -> None:
    sink = TensorBoard(tmp_path / "tb", start_step)
    sink(replace(STARTED, num_steps=10_000, start_step=start_step))
    for settled in range(start_step + 1, 10_001):
        sink(pushed(settled, float(settled % 10), [settled % 10], samples=16 if settled % 10 else 32))
    sink.close()
    found = scalars(tmp_path / "tb")
    assert [step for step, _ in found["push/loss"]] == list(range(start_step + 9, 10_000, 10))
    assert {value for _, value in found["push/staleness"]} == {4.5}
    assert [value for _, value in found["push/loss"]] == pytest.approx([45 / 11] * ((10_000 - start_step) // 10))


def test_nothing_is_made_before_the_first_number(tmp_path: Path) -> None:
    TensorBoard(tmp_path / "tb").close()
    assert not (tmp_path / "tb").exists()


@pytest.mark.parametrize("start_step", [0, 20])
def test_a_resumed_run_shows_each_step_once(tmp_path: Path, start_step: int) -> None:
    killed = TensorBoard(tmp_path / "tb")
    for step in range(30):
        killed(Stepped(step, 0, 8, 1.0, 0.5, float(step)))
    resumed = TensorBoard(tmp_path / "tb", start_step=start_step)  # within a second, in this very process
    for step in range(start_step, 40):
        resumed(Stepped(step, 0, 8, 2.0, 0.5, float(step)))
    killed.close()
    resumed.close()
    shown = scalars(tmp_path / "tb")["step/loss"]
    assert shown == [(step, 1.0 if step < start_step else 2.0) for step in range(40)]


def test_the_last_epoch_before_the_checkpoint_stays_when_a_run_goes_on(tmp_path: Path) -> None:
    killed = TensorBoard(tmp_path / "tb")
    killed(Logged(10, 0, {"mine": 1.0}))
    killed(epoch(0, 9, 0.5))
    killed.close()
    resumed = TensorBoard(tmp_path / "tb", start_step=10)
    resumed(epoch(1, 19, 0.75))
    resumed.close()
    found = scalars(tmp_path / "tb")
    assert found["test/accuracy"] == [(9, 0.5), (19, 0.75)]
    assert found["log/mine"] == [(9, 1.0)]


def test_events_that_cannot_be_written_are_said_once_and_stop_nothing(tmp_path: Path) -> None:
    (tmp_path / "tb").write_text("a file where the folder should be")
    said: list[str] = []
    sink = TensorBoard(tmp_path / "tb", warn=said.append)
    for step in range(5):
        sink(Stepped(step, 0, 8, 1.0, 0.5, float(step)))
    sink.close()
    (word,) = said
    assert word.startswith("tensorboard is off: FileExistsError")
