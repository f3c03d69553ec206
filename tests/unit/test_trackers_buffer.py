"""What is sent of a run's records, and what waits for a slow tracker."""

from __future__ import annotations

from squall.records import EpochEnded, Logged, Noted, Stepped
from squall.run.scalars import Point, Scalars, of_result
from squall.run.tracker import Buffer


def test_of_many_steps_one_a_second_becomes_a_point() -> None:
    scalars = Scalars()
    points = [scalars(Stepped(index, 0, 8, 1.0, 0.5, index / 16)) for index in range(64)]
    assert [point.step for point in points if point] == [0, 16, 32, 48]


def test_a_rate_that_nobody_knows_is_left_out() -> None:
    point = Scalars()(Stepped(3, 0, 8, 1.5, float("nan"), 0.0))
    assert point == Point(3, {"step/loss": 1.5}, thin=True)


def test_an_epoch_s_values_are_named_by_split() -> None:
    point = Scalars()(EpochEnded(0, 9, 1.5, 0.25, 100.0, {"data": 0.5}, 2.0, val={"loss": 2.0}, test={"auc": 0.5}))
    assert point == Point(
        9,
        {
            "val/loss": 2.0,
            "test/auc": 0.5,
            "lr": 0.25,
            "speed/samples_per_second": 100.0,
            "speed/evaluation_seconds": 0.0,
            "speed/data_seconds": 0.5,
        },
    )


def test_values_logged_after_an_update_stand_at_that_update_s_step() -> None:
    scalars = Scalars()
    assert scalars(Logged(10, 0, {"mine": 1.0})) == Point(9, {"log/mine": 1.0})
    assert scalars(Logged(0, 0, {"mine": 1.0})) == Point(0, {"log/mine": 1.0})
    assert scalars(Noted("no number")) is None


def test_of_a_result_only_numbers_and_hashes_are_sent() -> None:
    result = {
        "test_accuracy": 0.5,
        "steps": 12,
        "val_loss": float("nan"),
        "weights_sha256": "ab",
        "error": "KeyError: 'the user's own words'",
        "commit": "c0ffee",
        "fingerprint": {"cpu": "avx512"},
        "ok": True,
    }
    assert of_result(result) == {"test_accuracy": 0.5, "steps": 12, "weights_sha256": "ab"}


def step(index: int) -> Point:
    return Point(index, {"step/loss": 1.0}, thin=True)


def epoch(index: int) -> Point:
    return Point(index, {"test/accuracy": 0.5})


def test_points_come_out_in_the_order_they_went_in() -> None:
    buffer = Buffer()
    for point in (step(0), epoch(0), step(1), step(2), epoch(2)):
        buffer.put(point, 0.0)
    assert [(index, *values) for index, _, values in buffer.take(3)] == [
        (0, "step/loss"),
        (0, "test/accuracy"),
        (1, "step/loss"),
    ]
    assert [index for index, _, _ in buffer.take()] == [2, 2]
    assert buffer.take() == []


def test_a_full_buffer_loses_the_oldest_steps_and_keeps_epochs() -> None:
    buffer = Buffer(capacity=8)
    for index in range(100):
        buffer.put(step(index), 0.0)
        if index % 25 == 24:
            buffer.put(epoch(index), 0.0)
    assert buffer.dropped == 104 - 8
    assert [(index, *values) for index, _, values in buffer.take()] == [
        (24, "test/accuracy"),
        (49, "test/accuracy"),
        (74, "test/accuracy"),
        *[(index, "step/loss") for index in (96, 97, 98, 99)],
        (99, "test/accuracy"),
    ]


def test_a_buffer_full_of_epochs_loses_the_oldest_and_stays_bounded() -> None:
    buffer = Buffer(capacity=4)
    for index in range(10):
        buffer.put(epoch(index), 0.0)
    assert len(buffer) == 4
    assert [index for index, _, _ in buffer.take()] == [6, 7, 8, 9]
    assert buffer.dropped == 6


def test_a_step_takes_no_epoch_s_place() -> None:
    buffer = Buffer(capacity=4)
    for index in range(4):
        buffer.put(epoch(index), 0.0)
    buffer.put(step(4), 0.0)
    assert [index for index, _, _ in buffer.take()] == [0, 1, 2, 3]
    assert buffer.dropped == 1
