"""A script may train twice in one job: the launcher's store still holds the first training's keys and addresses."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import squall
from squall.cluster.place import LOOPBACK
from squall.cluster.world import World, listener, open_store
from tests.jobs import run_job
from tests.process.bits import SGD, digits


def joins_by_itself(port: int, world: World) -> list[str]:
    """What a script under torchrun does: every `squall.train` joins the job and leaves it again."""
    place = {"RANK": world.rank, "WORLD_SIZE": world.size, "LOCAL_RANK": world.rank, "LOCAL_WORLD_SIZE": world.size}
    master = {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    os.environ.update({key: str(value) for key, value in {**place, **master}.items()})
    return [trained(limit) for limit in (96, 100)]


def in_one_world(world: World) -> list[str]:
    """Two trainings of one world."""
    return [trained(limit, world) for limit in (96, 100)]


def trained(limit: int, world: World | None = None) -> str:
    recipe = digits(SGD, epochs=1, data={"train_limit": limit})
    return str(squall.train(None, squall.Recipe(**recipe), world=world).values["weights_sha256"])


def alone() -> list[Any]:
    return [trained(limit) for limit in (96, 100)]


def test_every_training_of_a_script_joins_anew() -> None:
    server = listener()
    port = server.getsockname()[1]
    store = open_store(server, timedelta(seconds=60))
    try:
        assert run_job(joins_by_itself, 2, port) == [alone(), alone()]
    finally:
        del store


def test_every_training_of_one_world_reads_its_own_data() -> None:
    assert run_job(in_one_world, 2) == [alone(), alone()]
