"""The ledger of a run's pushes: what is said of losses, and what sessions hand on to each other."""

from __future__ import annotations

import json

import pytest

from squall.data.order import Order
from squall.errors import RunError
from squall.server.leases import Pool
from squall.server.messages import Holdings, Receipt, Settled, Unit, Version
from squall.strategy.downpour.tally import Tally

ORDER = Order(10, 2, 2, 4, 0)  # 5 minibatches of 2 samples an epoch


def holdings(*held: int, incarnation: int = 1) -> Holdings:
    states = bytes(int(minibatch in held) for minibatch in range(ORDER.num_steps))
    return Holdings(Version(incarnation, len(held)), states, {})


def told(tally: Tally, pool: Pool, *minibatches: int) -> None:
    for minibatch in minibatches:
        unit = Unit(minibatch, 1)
        tally.add("replica-0", Settled(unit, (Receipt("applied", 0, Version(1, 0)),), 1.0, 2.0, 2), pool.settle(unit))


def restored(pool: Pool, tally: Tally, held: Holdings, carried: object = None) -> tuple[Pool, Tally]:
    pool.restore([held.states], 1)
    tally.restore([held], json.loads(json.dumps(carried)) if carried is not None else None)
    return pool, tally


def test_a_shard_that_is_restarted_twice_loses_nothing_twice() -> None:
    pool, tally = restored(Pool(5, 20), Tally(1, ORDER), holdings())
    told(tally, pool, *range(8))
    assert tally.restarted(0, holdings(0, 1, 2, 3, 4, incarnation=2)) == 3
    told(tally, pool, 8, 9, 10)
    assert tally.restarted(0, holdings(0, 1, 2, 3, 4, 8, incarnation=3)) == 2
    tally.is_restarted(0, Version(3, 6))
    values = tally.values([holdings(0, 1, 2, 3, 4, 8, incarnation=3)], pool)
    assert values["minibatches"]["shards"][0] == {"applied": 6, "dropped": 0, "lost": 5, "restarts": 1}


def test_what_a_session_left_unsaid_or_lost_is_counted_by_the_next() -> None:
    pool, tally = restored(Pool(5, 20), Tally(1, ORDER), holdings())
    told(tally, pool, 0, 1, 2, 3, 6)
    pool, tally = restored(Pool(5, 20), Tally(1, ORDER), holdings(0, 1, 2, 4, 5, 6), tally.state())
    assert pool.settled == 6
    told(tally, pool, *sorted(set(range(20)) - {0, 1, 2, 4, 5, 6}))
    values = tally.values([holdings(*range(20))], pool)
    found = values["minibatches"]
    assert (found["settled"], found["unreported"], found["redone"]) == (20, 2, 1)
    assert values["samples"] == 40
    assert values["pushes"]["computed"] == 20 - 2 + 1


def test_reports_that_do_not_close_are_an_error() -> None:
    pool, tally = restored(Pool(5, 20), Tally(1, ORDER), holdings())
    told(tally, pool, *range(5))
    pool.settle(Unit(5, 1))
    with pytest.raises(RunError, match="close"):
        tally.values([holdings(*range(6))], pool)
