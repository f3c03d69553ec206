"""A shard: the slice of weights that one server owns, the rule it applies, and what it has applied so far.

Dean et al. 2012, section 4.1. Shards know nothing of each other; a replica's fetch may meet different numbers of
updates on different shards, by design. Everything that changes the slice or looks at it is one piece of work in the
shard's single line of work, so that no push, fetch or snapshot sees half of another.

* A push is applied at most once: by its number for a message that came twice, and by its minibatches for one that
  was computed twice because its replica was thought dead. A refused one is not even read.
* Its staleness is exact: pushes applied since the version it was computed with.
* Buffers (running statistics of a normalisation) have no gradient and no rule. A replica sends their values, and the
  shard keeps a running merge: b <- b + (b_replica - b) / (1 + staleness). One replica alone replaces them, as one
  device does; R equal replicas are averaged over about R pushes. Adding up changes instead would overshoot: two hundred
  replicas that each move a tenth of the way to where the statistics are would move it twenty times.
* A shard that died comes back with its newest snapshot. What was pushed since is lost, and the map of what was applied
  says which minibatches that was.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, Protocol

import torch

from squall.cluster.program import Cost, Role
from squall.data.order import Order
from squall.errors import RunError
from squall.optim.lr import Rate
from squall.optim.rules import RuleSpec, ServerRule
from squall.server.client import so_far
from squall.server.layout import Slice
from squall.server.messages import Fetch, Fetched, Holdings, Outcome, Push, Receipt, Version

APPLIED, DROPPED = 1, 2


@dataclass
class Snapshot:
    """The state of a shard at one moment.

    Attributes:
        number: of the snapshot; all shards make theirs of one number at about the same time.
        tensors: weights, "rule.*", states (uint8, one a minibatch), counters (int64).
        count: pushes in it.
        received: as of `Holdings`.
    """

    number: int
    tensors: dict[str, torch.Tensor]
    count: int
    received: dict[str, int]


class Snapshots(Protocol):
    """Where shards keep snapshots; a file store, or a dictionary in simulated time."""

    def newest(self, shard: int) -> Snapshot:
        """The newest whole one of a shard; there is always that of the beginning."""

    def beside(self) -> Snapshots:
        """Others of the same shards, which are all kept."""

    def numbers(self, shard: int) -> list[int]:
        """Those of a shard that there are, ascending."""

    def read(self, shard: int, number: int) -> Snapshot:
        """One of them."""

    def forget(self, shard: int, below: int = 0, above: float = inf) -> None:
        """Removes those whose numbers are smaller, or larger."""

    def save(self, shard: int, snapshot: Snapshot) -> int:
        """Keeps one, whole or not at all; returns its bytes."""


@dataclass(frozen=True)
class ShardSpec:
    """What a shard is told.

    Attributes:
        slice: of the vector.
        rule: that it applies.
        rate: of the run; a push's is that at its first minibatch.
        order: the run's minibatches.
        num_counters: integer buffers; 0 but for shard 0.
        max_staleness: a push that is staler is dropped; None: never.
    """

    slice: Slice
    rule: RuleSpec
    rate: Rate
    order: Order
    num_counters: int = 0
    max_staleness: int | None = None

    def rate_of(self, minibatch: int) -> float:
        """The rate of a minibatch: a function of how far the run is when it is handed out."""
        return self.rate.at_step(self.order, minibatch)


class Shard(Role):
    """Serves one slice.

    Arguments:
        spec: of the shard.
        snapshots: where it finds its weights when it begins, also the first time.
        audit: called with (push, its gradient) for each push that is applied; tests count with it.
    """

    def __init__(self, spec: ShardSpec, snapshots: Snapshots, audit: Any = None) -> None:
        self.spec, self._snapshots, self._audit = spec, snapshots, audit

    async def begin(self) -> None:
        """Takes its newest snapshot up."""
        await self.here.compute(self._load)

    def _load(self) -> None:
        spec, found = self.spec, self._snapshots.newest(self.spec.slice.index)
        self._weights = found.tensors["weights"].clone()
        pieces = spec.slice.pieces
        self._rule = ServerRule(
            spec.rule,
            [self._weights[piece.start : piece.stop] for piece in pieces],
            [piece.treated.lr_scale for piece in pieces],
            [piece.treated.weight_decay for piece in pieces],
        )
        self._rule.load({key[5:]: value for key, value in found.tensors.items() if key.startswith("rule.")})
        self._states = found.tensors["states"].clone()
        self._counters = found.tensors["counters"].clone()
        self._saved = -1
        self._count, self._received = found.count, dict(found.received)
        self._newest: dict[str, tuple[int, int]] = {}
        self._fetched: dict[str, tuple[tuple[int, int], Fetched]] = {}
        self._bytes = self._weights.numel() * self._weights.element_size()

    async def fetch(self, fetch: Fetch, into: torch.Tensor) -> Fetched:
        """Writes the slice as it is into a replica's memory; (slice.size,)."""
        return await self.here.compute(lambda: self._written(fetch, into), Cost(bytes=2 * self._bytes))

    async def push(
        self, push: Push, fetch: Fetch | None, send: torch.Tensor, into: torch.Tensor | None = None
    ) -> Receipt:
        """Applies the sum of a unit's gradients, once.

        Arguments:
            fetch: where given, the answer is a fetch too, after the push.
            send: (slice.size,): the gradients of the parameters' elements, the values of the buffers'.
            into: memory of the fetch.
        """

        def work() -> Receipt:
            outcome, staleness = self._judged(push)
            if outcome == "applied":
                self._apply(push, send, staleness or 0)
            self._received[outcome] = self._received.get(outcome, 0) + 1
            fetched = self._written(fetch, into) if fetch is not None and into is not None else None
            return Receipt(outcome, staleness, self._version(), fetched)

        return await self.here.compute(work, Cost(bytes=self._bytes * (4 if into is None else 6)))

    def _written(self, fetch: Fetch, into: torch.Tensor) -> Fetched:
        """Serves a fetch. One that came twice is answered as before: its memory may be in use by now."""
        last = self._fetched.get(fetch.sender.name)
        if last is not None and (fetch.sender.incarnation, fetch.number) <= last[0]:
            return last[1]
        into.copy_(self._weights)
        found = Fetched(self._version(), tuple(self._counters.tolist()))
        self._fetched[fetch.sender.name] = (fetch.sender.incarnation, fetch.number), found
        return found

    async def holdings(self) -> Holdings:
        """What it has applied."""

        def work() -> Holdings:
            return Holdings(self._version(), self._states.numpy().tobytes(), dict(self._received))

        return await self.here.compute(work)

    async def snapshot(self, number: int) -> tuple[int, float] | None:
        """Saves its state beside its work; returns bytes and the seconds that work stood still for the copy.

        None while it is at it; one that asks again for the same number gets the same answer.
        """
        if number != self._saved:
            self._saved, self._saving = number, self.here.start(self._save(number))
        found = await so_far(self.here, self._saving)
        if isinstance(found, RunError):
            raise found
        return found

    async def _save(self, number: int) -> tuple[int, float] | RunError:
        began = self.here.now()
        found = await self.here.compute(lambda: self._taken(number), Cost(bytes=4 * self._bytes))
        stood = self.here.now() - began
        index = self.spec.slice.index
        save = partial(self._snapshots.save, index, found)
        try:
            return await self.here.beside(save, Cost(bytes=4 * self._bytes)), stood
        except RunError as error:  # whoever asks for the snapshot hears of it
            return error

    def _judged(self, push: Push) -> tuple[Outcome, int | None]:
        """What becomes of a push; pure but for noting its number."""
        unit, sender = push.unit, push.sender
        states = self._states[unit.first : unit.first + unit.count]
        if len(states) != unit.count:
            raise RunError(f"{sender.name} pushed minibatch {unit.minibatches[-1]} of {len(self._states)}")
        last = self._newest.get(sender.name, (-1, -1))
        if (sender.incarnation, push.number) <= last or bool(states.any()):
            return "repeated", None
        self._newest[sender.name] = (sender.incarnation, push.number)
        staleness = self._count - push.base.count if push.base.incarnation == self.here.incarnation else None
        cap = self.spec.max_staleness
        if cap is not None and (staleness is None or staleness > cap):
            states.fill_(DROPPED)
            return "dropped", staleness
        return "applied", staleness

    def _apply(self, push: Push, send: torch.Tensor, staleness: int) -> None:
        spec, unit = self.spec, push.unit
        pieces = spec.slice.pieces
        absent = set(push.without)
        gradients = [None if piece.parameter in absent else send[piece.start : piece.stop] for piece in pieces]
        self._rule.apply(gradients, spec.rate_of(unit.first), unit.count)
        if spec.slice.buffers < spec.slice.size:
            merged, own = self._weights[spec.slice.buffers :], send[spec.slice.buffers :]
            if staleness:
                merged.lerp_(own, 1.0 / (1 + staleness))
            else:
                merged.copy_(own)
        if spec.num_counters:
            self._counters += torch.tensor(push.counters, dtype=torch.int64)
        self._states[unit.first : unit.first + unit.count] = APPLIED
        self._count += 1
        if self._audit is not None:
            self._audit(push, send)

    def _taken(self, number: int) -> Snapshot:
        tensors = {"weights": self._weights.clone(), "states": self._states.clone()}
        tensors["counters"] = self._counters.clone()
        tensors |= {f"rule.{key}": value for key, value in self._rule.state().items()}
        return Snapshot(number, tensors, self._count, dict(self._received))

    def _version(self) -> Version:
        return Version(self.here.incarnation, self._count)


def first_snapshot(spec: ShardSpec, vector: torch.Tensor, counters: torch.Tensor) -> Snapshot:
    """The state of a shard before the first push, from the whole vector."""
    part = spec.slice
    tensors = {
        "weights": vector[part.start : part.stop].clone(),
        "states": torch.zeros(spec.order.num_steps, dtype=torch.uint8),
        "counters": counters[: spec.num_counters].clone(),
    }
    return Snapshot(0, tensors, 0, {})
