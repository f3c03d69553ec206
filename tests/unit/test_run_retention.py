"""Which checkpoints stay: the newest, and the best, also while one is still being written or came to nothing."""

from __future__ import annotations

from squall.run.retention import Retention


def test_the_newest_and_the_best_stay() -> None:
    held = Retention(2, held=[2, 4, 6], best=(0.9, 2))
    assert held.removable(8) == [4]
    held.is_whole(8)
    assert held.removable(10) == [6]


def test_a_best_that_is_still_being_written_when_the_next_comes_is_not_forgotten() -> None:
    """A disk that takes longer than an epoch."""
    held = Retention(1)
    assert held.is_better(0.5, 3)
    assert not held.is_better(0.4, 6)
    assert held.is_better(0.7, 9)
    held.is_whole(3)
    assert held.best_with(9) == (0.7, 9)
    held.is_whole(9)
    assert held.best_with(12) == (0.7, 9)
    assert held.removable(12) == []


def test_a_best_that_could_not_be_written_decides_nothing() -> None:
    held = Retention(1, less=True)
    assert held.is_better(0.1, 3)
    held.has_failed(3)
    assert held.is_better(0.2, 6)
    assert not held.is_better(float("nan"), 9)
