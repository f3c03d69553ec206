"""Replicas that leave, and come back while they are on their way out."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from squall.cluster.fault import Fault
from squall.records import Pushed, RoleChanged
from tests.downpours import EVEN, Job


def asking(*numbers: tuple[int, int]) -> Callable[[], list[tuple[str, int]]]:
    """At which look of the driver how many replicas there are to be."""
    looks, wanted = itertools.count(), dict(numbers)

    def asked() -> list[tuple[str, int]]:
        look = next(looks)
        return [("resize", wanted[look])] if look in wanted else []

    return asked


@pytest.mark.parametrize("look", range(3, 5))
def test_one_that_is_wanted_again_on_its_way_out_comes_back(look: int) -> None:
    job = Job(replicas=2, shards=1, push_every=30, num_samples=480, epochs=4)
    job.run(asked=asking((look, 1), (look + 1, 2)))
    late = [record.replica for record in job.records if isinstance(record, Pushed)][-6:]
    assert late.count("replica-1") >= 2


@pytest.mark.parametrize("look", range(2, 4))
def test_the_last_word_of_one_that_left_may_come_twice(look: int) -> None:
    job = Job(replicas=2, shards=1, epochs=12)
    summary = job.run(EVEN, [Fault("duplicate", "replica-1", 0.0, 1e9)], asked=asking((look, 1)))
    assert summary.values["pushes"]["repeated"] == 0
    changes = [
        record.change for record in job.records if isinstance(record, RoleChanged) and record.role == "replica-1"
    ]
    assert changes == ["joined", "left"]


@pytest.mark.parametrize("look", range(2, 4))
def test_one_that_left_and_whose_last_word_came_twice_can_come_back(look: int) -> None:
    job = Job(replicas=2, shards=1, epochs=24)
    job.run(EVEN, [Fault("duplicate", "replica-1", 0.0, 1e9)], asked=asking((look, 1), (look + 4, 2)))
    late = [record.replica for record in job.records if isinstance(record, Pushed)][-12:]
    assert late.count("replica-1") >= 4
