"""The pool of minibatches: each handed out once, by parts; what comes back is handed out again; all adds up."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from squall.server.leases import Pool
from squall.server.messages import Unit


def drain(pool: Pool, part: int = 0, parts: int = 1, wanted: int = 1) -> list[Unit]:
    units = []
    while unit := pool.lease("a", part, parts, wanted, 0.0):
        units.append(unit)
        pool.settle(unit)
    return units


def test_one_replica_gets_the_run_in_order() -> None:
    assert [unit.first for unit in drain(Pool(4, 12))] == list(range(12))


def test_units_end_where_their_part_ends() -> None:
    assert drain(Pool(7, 14), wanted=3) == [Unit(f, c) for f, c in [(0, 3), (3, 3), (6, 1), (7, 3), (10, 3), (13, 1)]]


def test_a_replica_keeps_its_part_and_then_helps_where_most_is_left() -> None:
    pool = Pool(12, 12)
    firsts = [pool.lease("b", 1, 3, 1, 0.0) for _ in range(4)]
    assert firsts == [Unit(n, 1) for n in (4, 5, 6, 7)]
    assert pool.lease("a", 0, 3, 1, 0.0) == Unit(0, 1)
    assert pool.lease("b", 1, 3, 1, 0.0) == Unit(8, 1)  # part 2 has four left, part 0 three


def test_the_next_epoch_begins_when_this_one_is_handed_out_and_is_cut_anew() -> None:
    pool = Pool(4, 8)
    for _ in range(4):
        pool.lease("a", 0, 1, 1, 0.0)
    assert pool.lease("b", 1, 2, 1, 0.0) == Unit(6, 1)
    assert pool.lease("a", 0, 2, 1, 0.0) == Unit(4, 1)


def test_units_of_the_dead_come_back_whole_and_first() -> None:
    pool = Pool(8, 8)
    unit = pool.lease("a", 0, 1, 3, 0.0)
    assert pool.release("a") == [unit]
    assert pool.lease("b", 0, 1, 1, 1.0) == unit == Unit(0, 3)


def test_whoever_settles_first_counts() -> None:
    pool = Pool(4, 4)
    unit = pool.lease("a", 0, 1, 2, 0.0)
    assert unit is not None
    assert pool.again("a", 1.0, 5.0) is None  # not by the same
    assert pool.again("b", 3.0, 5.0) is None  # not old enough: two minibatches
    assert pool.again("b", 2.0, 5.0) == unit
    assert pool.settle(unit)
    assert not pool.settle(unit)
    assert pool.settled == 2
    assert pool.release("a") == pool.release("b") == []


def test_a_late_settlement_takes_a_unit_back_from_the_waiting() -> None:
    pool = Pool(4, 4)
    unit = pool.lease("a", 0, 1, 2, 0.0)
    assert unit is not None
    pool.release("a")
    assert pool.settle(unit)
    assert [u.first for u in drain(pool)] == [2, 3]
    assert pool.over


def test_a_unit_does_not_cross_the_end_of_the_warm_start() -> None:
    pool = Pool(10, 10, before=4)
    assert [u.count for u in drain(pool, wanted=3)] == [3, 1, 3, 3]
    assert pool.warm


def test_shards_that_hold_different_minibatches_get_what_they_lack() -> None:
    pool = Pool(6, 6)
    pool.restore([bytes([1, 1, 1, 0, 0, 0]), bytes([1, 2, 0, 1, 0, 0])], most=2)
    assert pool.settled == 2
    assert drain(pool, wanted=2) == [Unit(2, 1), Unit(3, 1), Unit(4, 2)]
    assert pool.over


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_everything_is_settled_once_whatever_happens(data: st.DataObject) -> None:
    per_epoch = data.draw(st.integers(1, 12))
    epochs = data.draw(st.integers(1, 3))
    replicas = data.draw(st.integers(1, 4))
    pool = Pool(per_epoch, per_epoch * epochs, before=data.draw(st.integers(0, per_epoch)))
    held: dict[str, list[Unit]] = {f"r{index}": [] for index in range(replicas)}
    settled: list[int] = []
    for now in range(2000):
        if pool.over:
            break
        index = data.draw(st.integers(0, replicas - 1)) if now < 60 else now % replicas
        worker = f"r{index}"
        action = data.draw(st.sampled_from(["lease", "settle", "die", "again"])) if now < 60 else "settle"
        if action == "die":
            pool.release(worker)
            held[worker] = []
        elif action == "again" and (unit := pool.again(worker, 1.0, now)):
            held[worker].append(unit)
        elif action == "settle" and held[worker]:
            unit = held[worker].pop(0)
            if pool.settle(unit):
                settled += unit.minibatches
        elif unit := pool.lease(worker, index, replicas, data.draw(st.integers(1, 4)) if now < 60 else 3, now):
            held[worker].append(unit)
        elif not any(held.values()):
            pytest.fail(f"nothing to do, {pool.settled} of {pool.total} settled")
    assert sorted(settled) == list(range(pool.total))
    assert not pool.outstanding


def test_thousands_of_epochs_that_are_settled_are_passed_by() -> None:
    pool = Pool(per_epoch=2, total=6000)
    pool.restore([bytes([1] * 5999 + [0])], 1)
    assert pool.lease("a", 0, 1, 1, 0.0) == Unit(5999, 1)
