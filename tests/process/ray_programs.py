"""Small programs of roles for one session of real Ray: roles that cannot be made, wait for room, or end by themselves.

`serve(folder)` runs those whose names it reads, one after the other, and says in a line of JSON what each came to.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from squall.cluster.program import LateError, LostError, Plan, Program, Role
from squall.engine.ray import engine
from squall.engine.ray.cluster import Cluster, local
from squall.engine.ray.engine import OnRay
from squall.errors import InputError, SquallError
from squall.records import Noted, Record

PATIENCE_S = 60.0


class Worker(Role):
    """Answers, and ends its process when it is told to.

    Arguments:
        poor: incarnations that find too little memory.
        ballast: makes it heavy on its way.
    """

    def __init__(self, poor: tuple[int, ...] = (), ballast: bytes = b"") -> None:
        self._poor = poor

    async def begin(self) -> None:
        if self.here.incarnation in self._poor:
            raise InputError("too little memory", [("found", "none free")])

    async def born(self) -> tuple[int, int]:
        return os.getpid(), self.here.incarnation

    async def leave(self) -> None:
        await self.here.compute(partial(sys.exit, 3))


class Chief(Role):
    """Does what it is given, and hears what was noted."""

    def __init__(self, body: Callable[[Chief], Any], newcomer: Plan | None) -> None:
        self._body, self._newcomer, self._heard = body, newcomer, ""

    async def main(self) -> Any:
        return await self._body(self)

    async def asked(self, word: str, value: Any) -> None:
        self._heard += f"{value}\n"

    def enlist(self, name: str) -> None:
        assert self._newcomer is not None
        self.here.enlist(name, self._newcomer)

    async def hears(self, text: str) -> None:
        """Waits until something was noted."""
        until = self.here.now() + PATIENCE_S
        while text not in self._heard:
            assert self.here.now() < until, self._heard
            await self.here.sleep(0.05)

    async def born(self, name: str, beside: int = 0) -> tuple[int, int]:
        """A role's process, other than one, and its incarnation, once it answers."""
        until = self.here.now() + PATIENCE_S
        while True:
            assert self.here.now() < until, name
            try:
                pid, incarnation = await self.here.handle(name).call("born", within=5.0)
            except (LateError, LostError):
                pid = beside
            if pid != beside:
                return pid, incarnation
            await self.here.sleep(0.05)


async def greet(chief: Chief) -> str:
    await chief.born("replica-0")
    return "greeted"


async def gives_up(chief: Chief) -> bool:
    """A newcomer that is never made changes nothing for the other."""
    before = await chief.born("replica-0")
    chief.enlist("replica-1")
    await chief.hears("the run goes on without replica-1")
    return before == await chief.born("replica-0")


async def tries_again(chief: Chief) -> int:
    """The newcomer's incarnation in the end."""
    chief.enlist("replica-1")
    return (await chief.born("replica-1"))[1]


async def kills(chief: Chief, name: str) -> None:
    """The role that is made again for it finds no memory."""
    os.kill((await chief.born(name))[0], 9)
    await chief.hears("nothing")


async def replaces(chief: Chief) -> int:
    """Two leave and two of their names join at once: the incarnation of one."""
    chief.enlist("again")
    pid, _ = await chief.born("again")
    chief.here.dismiss("again")
    chief.enlist("again")
    return (await chief.born("again", beside=pid))[1]


async def waits(chief: Chief) -> str:
    """One has no room at the start, and one that joins: the evaluator is made all the same."""
    await chief.born("evaluator")
    await chief.hears("replica-1 waits for room")
    chief.enlist("replica-2")
    await chief.hears("replica-2 waits for room")
    return "heard"


async def ends(chief: Chief, name: str) -> None:
    await chief.here.handle(name).call("leave", within=PATIENCE_S)


def replica(*poor: int, ballast: int = 0) -> Plan:
    return Plan(partial(Worker, poor, bytes(ballast)), "replica")


def shard(*poor: int) -> Plan:
    return Plan(partial(Worker, poor), "shard", cpus=0.0)


Body = Callable[[Chief], Any]
ALWAYS = tuple(range(1, 20))
LATER = ALWAYS[1:]
ONE = {"replica-0": replica()}
TWO = {**ONE, "replica-1": replica(), "evaluator": Plan(Worker, "evaluator", cpus=0.0, urgent=False)}

PROGRAMS: dict[str, tuple[dict[str, Plan], Body, Plan | None]] = {
    "begins poor": ({"replica-0": replica(*ALWAYS)}, greet, None),
    "newcomer": (ONE, gives_up, replica(*ALWAYS)),
    "newcomer at last": (ONE, tries_again, replica(1, 2)),
    "no other": ({"replica-0": replica(*LATER)}, partial(kills, name="replica-0"), None),
    "shard": ({**ONE, "shard-0": shard(*LATER)}, partial(kills, name="shard-0"), None),
    "same name": (ONE, replaces, replica(ballast=1_000_000)),
    "name taken": (ONE, gives_up, replica()),
    "no room": (TWO, waits, replica()),
    "ends itself": (ONE, partial(ends, name="replica-0"), None),
}


def serve(folder: Path) -> None:
    """Runs programs by name until there are no more."""
    engine._PAUSE_S, engine._WAITS_S, engine._LATER_S, engine._DEATHS = 0.1, 0.5, 0.5, 3
    with local(cpus=1, folder=folder) as cluster:
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            name = line.strip()
            print(json.dumps(ran(cluster, folder / name.replace(" ", "-"), name)), flush=True)


def ran(cluster: Cluster, logs: Path, name: str) -> dict[str, Any]:
    """Runs a program in a namespace of its own."""
    roles, body, newcomer = PROGRAMS[name]
    noted: list[str] = []
    told: list[tuple[str, Any]] = []

    def sink(record: Record) -> None:
        if isinstance(record, Noted):
            noted.append(record.text)
            told.append(("noted", record.text))

    def asked() -> list[tuple[str, Any]]:
        taken = told[:]
        told.clear()
        return taken

    cluster.namespace = f"{cluster.namespace}-"
    if name == "no room":
        cluster.require(1, 0, "this")  # the program before has left
        cluster.require = lambda *_: None  # type: ignore[method-assign, misc, assignment]
    on_ray = OnRay(cluster, logs, own=name != "no room")
    if name == "name taken":  # Ray frees none
        engine._FREES_S = 0.5
        made = on_ray._maker.actor
        on_ray._maker.actor = lambda one, plan: None if one == "replica-1" else made(one, plan)  # type: ignore[method-assign]
    plans = {**roles, "chief": Plan(partial(Chief, body, newcomer), "coordinator", restarts=False, cpus=0.0)}
    value: Any
    try:
        value = on_ray.run(Program(plans, "chief"), sink, asked)
    except SquallError as error:
        value = f"{type(error).__name__}: {error}"
    return {"value": value, "noted": noted, "contents": len(on_ray._maker._sent)}
