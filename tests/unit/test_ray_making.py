"""How roles become actors: what is sent once, and who waits for room."""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any, cast

import pytest

from squall.cluster.program import Plan, Role
from squall.engine.ray.making import Maker, Needs, unplaced
from squall.engine.ray.sealed import Sealed, seal

ONE, NONE = (1.0, 0.0), (0.0, 0.0)


@pytest.mark.parametrize(
    ("starting", "taken", "free", "found"),
    [
        ([], NONE, NONE, []),
        ([("a", ONE), ("b", ONE)], NONE, (2.0, 0.0), []),  # not asked for yet
        ([("a", ONE), ("b", ONE)], (2.0, 0.0), NONE, []),  # on their way
        ([("a", ONE), ("b", ONE)], ONE, NONE, ["b"]),
        ([("a", ONE), ("b", NONE), ("c", (1.0, 1.0))], (2.0, 0.0), (5.0, 0.0), ["c"]),
        ([("a", ONE)], (-1.0, 0.0), (0.5, 0.0), ["a"]),
    ],
)
def test_who_waits_is_who_was_asked_for_last(
    starting: list[tuple[str, Needs]], taken: Needs, free: Needs, found: list[str]
) -> None:
    assert unplaced(starting, taken, free) == found


class Heavy(Role):
    def __init__(self, ballast: bytes) -> None:
        self.ballast = ballast


class Holding(Role):
    def __init__(self, plan: Plan) -> None:
        self.plan = plan


class _Store:
    """Ray's memory."""

    def __init__(self) -> None:
        self.held: list[Any] = []

    def put(self, value: Any) -> int:
        self.held.append(value)
        return len(self.held)


def test_what_comes_back_from_the_chief_was_sent_before() -> None:
    maker = Maker.__new__(Maker)
    maker._ray, maker._by_value, maker._sealed, maker._sent = cast(Any, _Store()), (), {}, {}
    plan = Plan(partial(Heavy, bytes(1000)), "replica")
    first = maker.content(plan)
    assert maker.content(plan) == first
    chief = cast(Holding, seal(partial(Holding, plan))())
    for _ in range(3):
        enlisted = pickle.loads(pickle.dumps(chief.plan))
        assert isinstance(enlisted.make, Sealed)
        assert maker.content(enlisted) == first
    assert maker.content(Plan(partial(Heavy, bytes(1001)), "replica")) != first
    assert len(maker._ray.held) == 2
