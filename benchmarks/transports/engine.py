"""Squall's engine as a training uses it: a program of a shard and a role that pushes and fetches, on Ray.

The shard is the one of a training, with Adagrad over one piece; the caller's side is the replica's client, one call
that pushes and fetches. The gradient lies in memory of the engine (`Here.memory`), as a replica's sums do. The time is
that of the caller's `await`, taken inside its process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch

from squall.cluster.program import Plan, Program, Role
from squall.data.order import Order
from squall.engine.ray.cluster import Cluster, joined, local
from squall.engine.ray.engine import OnRay
from squall.optim.lr import Rate
from squall.optim.rules import RuleSpec
from squall.records import Record
from squall.server.client import Client
from squall.server.layout import Decay, Piece, Slice
from squall.server.messages import Push, Sender, Unit
from squall.server.shard import Shard, ShardSpec, Snapshot, first_snapshot
from transports.base import DEADLINE_S, EPS, RATE, Driven, Where, digest, gradient_of

MOST_CALLS = 1_000_000


@dataclass(frozen=True)
class Said(Record):
    """What the caller says to the benchmark."""

    kind: ClassVar[str] = "said"
    value: Any


class Zeros:
    """Snapshots of a shard that always begins anew."""

    def __init__(self, spec: ShardSpec) -> None:
        self._spec = spec

    def newest(self, shard: int) -> Snapshot:
        return first_snapshot(self._spec, torch.zeros(self._spec.slice.size), torch.zeros(0, dtype=torch.int64))

    def save(self, shard: int, snapshot: Snapshot) -> int:
        raise NotImplementedError


class Caller(Role):
    """Pushes and fetches when it is asked to."""

    def __init__(self, part: Slice) -> None:
        self._part = part

    async def main(self) -> None:
        here = self.here
        self._gradient = here.memory(self._part.size, torch.float32).copy_(gradient_of(self._part.size))
        self._client = Client(here, [self._part], torch.float32, DEADLINE_S)
        self._version = (await self._client.fetch())[0].version
        self._over, self._number = here.promise(), 0
        here.emit(Said("ready"))
        await self._over

    async def asked(self, word: str, value: Any) -> None:
        """As the benchmark says."""
        if word == "calls":
            self.here.emit(Said(await self._calls(value)))
        elif word == "found":
            weights = torch.empty_like(self._gradient)
            self._client.take(weights)
            self.here.emit(Said(digest(weights)))
        else:
            self._over.keep()

    async def _calls(self, number: int) -> float:
        seconds = []
        sender = Sender(self.here.name, self.here.incarnation)
        for _ in range(number):
            begin = time.perf_counter()
            push = Push(sender, self._number + 1, Unit(self._number, 1), self._version)
            receipt = (await self._client.push([push], self._gradient, fetching=True))[0]
            seconds.append(time.perf_counter() - begin)
            assert receipt.outcome == "applied"
            self._number, self._version = self._number + 1, receipt.version
        return statistics.median(seconds)


class Engine(Driven):
    """Squall's engine."""

    between_hosts = True

    @classmethod
    def serve(cls, pipe: Connection, num_elements: int, where: Where) -> None:
        def asked() -> list[tuple[str, Any]]:
            try:
                return [pipe.recv()] if pipe.poll() else []
            except EOFError:
                return [("over", None)]

        with cluster(where) as ray:
            OnRay(ray, own=not where.ray).run(
                program(num_elements), lambda said: pipe.send(said.value) if isinstance(said, Said) else None, asked
            )


def program(num_elements: int) -> Program:
    """A shard, where there are two processors for it, and a caller beside the driver."""
    part = Slice(0, 0, num_elements, (Piece(0, 0, num_elements, Decay()),), num_elements)
    spec = ShardSpec(part, RuleSpec("adagrad", eps=EPS), Rate(base=RATE), Order(MOST_CALLS, 1, 1, 1, 0))
    roles = {
        "caller": Plan(partial(Caller, part), "caller", restarts=False, beside_driver=True),
        "shard-0": Plan(partial(Shard, spec, Zeros(spec)), "shard", restarts=False, cpus=2.0),
    }
    return Program(roles, "caller")


@contextmanager
def cluster(where: Where) -> Iterator[Cluster]:
    """That of the two hosts, or one on this machine."""
    if where.ray:
        with joined(where.ray) as found:
            yield found
    else:
        with TemporaryDirectory() as folder, local(cpus=3, folder=Path(folder)) as found:
            yield found
