"""The client of the shards: how long a call is given, when it is made again, and when a shard is given up."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from squall.cluster.fault import Costs, Fault
from squall.cluster.program import Plan, Program, Role
from squall.engine.simulated import Simulated
from squall.errors import RunError
from squall.server.client import Client, Pace
from squall.server.layout import Slice
from squall.server.messages import Fetch, Fetched, Version
from tests.downpours import EVEN, Job

SIZE = 1000
MB = 1_000_000


def test_the_bytes_of_a_call_are_part_of_its_time() -> None:
    pace = Pace(600.0)
    assert [pace.within(num_bytes) for num_bytes in (0, 400 * MB, 800 * MB)] == [30.0, 70.0, 110.0]
    assert Pace(10.0).within(0) == 10.0
    assert Pace(600.0).patience(400 * MB) == 640.0


def test_a_late_call_is_given_twice_as_long_and_a_quick_one_half_again() -> None:
    pace, found = Pace(600.0), []
    for _ in range(7):
        found.append(pace.within(0))
        pace.late(0)
    assert found == [30.0, 60.0, 120.0, 240.0, 480.0, 600.0, 600.0]
    pace.answered(0, 300.0)
    assert pace.within(0) == 600.0
    for _ in range(7):
        found.append(pace.within(0))
        pace.answered(0, 1.0)
    assert found[7:] == [600.0, 480.0, 240.0, 120.0, 60.0, 30.0, 30.0]


class Server(Role):
    """Answers a fetch after so many seconds; notes when it was asked."""

    def __init__(self, seconds: float, asked: list[float]) -> None:
        self._seconds, self._asked = seconds, asked

    async def fetch(self, fetch: Fetch, into: torch.Tensor) -> Fetched:
        self._asked.append(self.here.now())
        await self.here.sleep(self._seconds)
        return Fetched(Version(0, fetch.number), ())


class Fetching(Role):
    """Fetches so many times; notes how long each took."""

    def __init__(self, times: int, took: list[float]) -> None:
        self._times, self._took = times, took

    async def main(self) -> None:
        client = Client(self.here, [Slice(0, 0, SIZE, SIZE, ())], torch.float32, 600.0)
        for _ in range(self._times):
            began = self.here.now()
            await client.fetch()
            self._took.append(self.here.now() - began)


def fetches(times: int, seconds: float, *faults: Fault) -> tuple[list[float], list[float], float]:
    """How long fetches took, when the shard was asked, and when it was all over."""
    took: list[float] = []
    asked: list[float] = []
    make: Callable[..., Any] = partial
    roles = {"client": Plan(make(Fetching, times, took), "client"), "shard-0": Plan(make(Server, seconds, asked), "x")}
    engine = Simulated(EVEN, faults, most_events=10_000)
    with suppress(RunError):  # it is given up
        engine.run(Program(roles, "client"), lambda _: None)
    return took, asked, engine.now


def test_a_slow_shard_is_asked_again_once_and_then_waited_for() -> None:
    took, asked, _ = fetches(3, 50.0)
    assert took == pytest.approx([80.2, 50.0, 50.0], abs=0.1)
    assert len(asked) == 4


def test_a_shard_that_died_is_no_slow_one() -> None:
    """Its death is noticed after a second, however often it dies, and no later call is given longer for that."""
    deaths = [Fault("kill", "shard-0", at, 0.1) for at in (1.0, 4.0, 7.0)]
    took, asked, now = fetches(1, 2.5, *deaths, Fault("drop", "shard-0", 10.0, 1.0))
    assert took == [now]
    assert now < 8.3 + 30.0 + 3.0
    assert len(asked) == 5


def test_a_silent_shard_is_given_up() -> None:
    took, _, now = fetches(1, 1.0, Fault("drop", "shard-0", 0.0))
    assert took == []
    assert 600.0 < now < 1000.0


@pytest.mark.parametrize("seed", range(3))
def test_replicas_that_crowd_a_slow_link_finish_in_about_its_own_time(seed: int) -> None:
    """Sixteen replicas fetch at once, each slice takes 3 s: 48 s for the last of them, and no deadline knows that."""
    job = Job(replicas=16, epochs=2, num_samples=192, lease_timeout=600.0)
    slow: Costs = replace(EVEN, bandwidth=job.layout.size * job.layout.dtype.itemsize / 3.0)
    assert job.run(slow, seed=seed).outcome == "finished"
    assert job.engine.now < 2 * job.order.num_steps * 3.0
