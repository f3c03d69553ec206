"""Programs on real Ray: what becomes of roles that cannot be made, that wait for room, or that end themselves."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from squall.engine.leftovers import marked
from tests.process.conftest import MARK
from tests.process.ray_drivers import driver, until

GONE_S = 10.0
SERVES = "from tests.process.ray_programs import serve; serve(Path('run'))"
HOME = str(Path(__file__).resolve().parents[2])


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Runs a program of `ray_programs` by name; all share a session."""
    value = uuid.uuid4().hex
    with driver(SERVES, tmp_path_factory.mktemp("home"), PYTHONPATH=HOME, **{MARK: value}) as running:
        running.heard()

        def run(name: str) -> dict[str, Any]:
            assert running.process.stdin is not None
            running.process.stdin.write(f"{name}\n".encode())
            return running.heard(100.0)

        yield run
        assert running.process.stdin is not None
        running.process.stdin.close()
        assert running.ended()[0] == 0
    until(lambda: not marked(f"{MARK}={value}".encode()), GONE_S)


def test_a_program_does_not_begin_with_a_role_that_cannot_be_made(ran: Callable[[str], dict[str, Any]]) -> None:
    found = ran("begins poor")
    assert "InputError: too little memory" in found["value"]
    assert found["noted"] == []


def test_a_newcomer_that_cannot_be_made_ends_nothing(ran: Callable[[str], dict[str, Any]]) -> None:
    found = ran("newcomer")
    assert found["value"] is True
    assert found["noted"] == [
        "replica-1 cannot be made, and will be tried again: too little memory: none free",
        "the run goes on without replica-1: too little memory: none free",
    ]


def test_a_newcomer_is_tried_again_until_it_can_be_made(ran: Callable[[str], dict[str, Any]]) -> None:
    found = ran("newcomer at last")
    assert found["value"] == 3
    assert len(found["noted"]) == 1


@pytest.mark.parametrize("name", ["no other", "shard"])
def test_without_the_last_replica_or_a_shard_nothing_goes_on(ran: Callable[[str], dict[str, Any]], name: str) -> None:
    found = ran(name)
    assert "InputError: too little memory" in found["value"]
    died, lacking = found["noted"]
    assert "died, and Ray starts it again" in died
    assert "cannot be made, and will be tried again" in lacking


def test_who_joins_again_is_sent_once(ran: Callable[[str], dict[str, Any]]) -> None:
    found = ran("same name")
    assert found["value"] == 2
    assert found["contents"] == 3  # the chief, the replica and the newcomer
    assert found["noted"] == []


def test_a_name_that_is_never_free_is_no_reason_to_stand_still(ran: Callable[[str], dict[str, Any]]) -> None:
    found = ran("name taken")
    assert found["value"] is True
    assert "the role replica-1 cannot be made again" in found["noted"][0]


def test_who_waits_for_room_is_named_and_keeps_nobody_waiting(ran: Callable[[str], dict[str, Any]]) -> None:
    found = ran("no room")
    assert found["value"] == "heard"
    room = "waits for room: it takes 1 CPUs, 0 GPUs; 0 CPUs, 0 GPUs free of 1 CPUs, 0 GPUs"
    assert found["noted"] == [f"replica-1 {room}", f"replica-2 {room}"]


def test_work_that_would_end_its_process_is_told(ran: Callable[[str], dict[str, Any]]) -> None:
    assert "RunError: replica-0 failed: SystemExit: 3" in ran("ends itself")["value"]
