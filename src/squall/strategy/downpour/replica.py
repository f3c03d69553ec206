"""A replica: it fetches weights, computes gradients of its minibatches, and pushes their sums.

The client of Dean et al. 2012 (appendix, algorithm 1), with what the paper leaves open settled::

    minibatch   0        1        2        3        4        5        6      fetch_every = push_every = 3
    fetch       ==>                        ======>|                   ==>    asked for before the minibatch; here it
    gradient    g0       g1       g2       g3     |  g4      g5       g6     may be late for 2 minibatches, then the
    local step  w-=a*g0  w-=a*g1  w-=a*g2  w-=a*g3 w=fetched w-=a*g4         replica waits; taken between two gradients
    push           =>[0]                      =>[1 2 3]                  =>  raw sums; also after the very first one

* A fetch never overtakes the replica's own push: it is asked for when the push before it is answered; where both are
  due between the same two minibatches, one call does both. So one replica that fetches and pushes at every step is
  sequential SGD, to the last bit.
* One push is under way at a time; gradients meanwhile go into the other of two accumulators.
* Every wait of the computing is counted as stalled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from squall.cluster.program import Cost, Role, Task
from squall.data.order import Order
from squall.errors import DivergedError
from squall.optim.lr import Rate
from squall.server.client import Client
from squall.server.gradients import Gradients, Sums
from squall.server.layout import Layout, Slice
from squall.server.messages import Lease, Push, Receipt, Sender, Settled, Unit, Version
from squall.strategy.errands import Errands


@dataclass(frozen=True)
class ReplicaSpec:
    """What a replica is told.

    Attributes:
        layout, slices: of the vector and its shards.
        fetch_every, push_every: n_fetch and n_push of the paper, in minibatches.
        local_lr: alpha, its own step between fetches; None: the run's rate at that minibatch.
        rate, order: of the run.
        patience: seconds of silence after which another role is given up.
        coordinator: its role's name.
    """

    layout: Layout
    slices: tuple[Slice, ...]
    fetch_every: int
    push_every: int
    local_lr: float | None
    rate: Rate
    order: Order
    patience: float = 600.0
    coordinator: str = "coordinator"

    def local_rate(self, minibatch: int) -> float:
        """The replica's own step at a minibatch."""
        return self.rate.at_step(self.order, minibatch) if self.local_lr is None else self.local_lr


class Replica(Role):
    """Computes gradients for as long as there are minibatches.

    Arguments:
        spec: of the replica.
        make: gives the process's `Gradients`; called where it computes.
    """

    def __init__(self, spec: ReplicaSpec, make: Callable[[], Gradients]) -> None:
        self.spec, self._make = spec, make

    async def begin(self) -> None:
        """Builds the network, or borrows it."""
        here, layout = self.here, self.spec.layout
        self._gradients: Gradients = await here.compute(self._make)
        device = self._gradients.device
        self._weights = torch.zeros(layout.size, dtype=layout.dtype, device=device)
        self._sums = [here.memory(layout.size, layout.dtype) for _ in range(2)]
        # where gradients are added up: on the processor right in the memory that travels
        self._total = torch.zeros_like(self._weights) if device.type != "cpu" else None
        self._scratch = torch.empty(0, dtype=layout.dtype, device=device)
        self._client = Client(here, self.spec.slices, layout.dtype, self.spec.patience)
        self._sender = Sender(here.name, here.incarnation)
        self._counters = [0] * len(layout.counters)
        self._base: tuple[Version, ...] = ()
        self._errands = Errands(here, self.spec.coordinator, self.spec.patience)
        self._number = 0
        self._fetching: Task[Any] | None = None
        self._pushing: Task[Any] | None = None
        self._refetch = False

    async def main(self) -> None:
        """Works until the coordinator says that the run is over."""
        here, spec, errands = self.here, self.spec, self._errands
        self._fetching = here.start(self._fetched())
        await self._arrived()
        step, unit = 0, (await errands.next(1)).unit
        began, stalled = here.now(), errands.stalled
        while unit is not None:
            ahead = here.start(errands.ask(spec.push_every, patient=False))
            sums, base = Sums(), None
            for minibatch in unit.minibatches:
                await self._up_to_date(step)
                base = base or self._base
                cost = Cost(minibatches=spec.order.step(minibatch).num_samples / spec.order.global_batch_size)
                sums.add(await here.compute(partial(self._compute, minibatch, unit), cost))
                step += 1
            await errands.wait_for(self._pushing)
            assert base is not None
            fetching = step % spec.fetch_every == 0
            full, _ = self._sums
            self._sums.reverse()
            now = here.now()
            spent, began, stalled = (now - began, errands.stalled - stalled), now, errands.stalled
            self._pushing = here.start(self._pushed(unit, full, sums, base, fetching, spent))
            if fetching:
                self._fetching = self._pushing
            lease: Lease = await errands.wait_for(ahead)
            unit = lease.unit
            if unit is None and not lease.over:
                await errands.wait_for(self._pushing)  # what it has is settled before it waits for more
                unit = (await errands.wait_for(here.start(errands.next(spec.push_every)))).unit
        await errands.wait_for(self._pushing)
        await errands.ask(0, patient=False)

    async def _up_to_date(self, step: int) -> None:
        """Fetches when it is time; waits for a fetch that may not be later; takes one that is there."""
        every = self.spec.fetch_every
        if step and self._fetching is None and (step % every == 0 or self._refetch):
            self._fetching = self.here.start(self._fetched())
        if self._fetching is not None and (self._fetching.done or every == 1 or (step + 1) % every == 0):
            await self._arrived()

    async def _arrived(self) -> None:
        await self._errands.wait_for(self._fetching)
        self._fetching, self._refetch = None, False
        self._client.take(self._weights)
        self._base, self._counters = self._coming

    async def _fetched(self) -> None:
        """Asks for weights, once the push under way is answered."""
        if self._pushing is not None:
            await self._pushing
        found = await self._client.fetch()
        self._coming = tuple(fetched.version for fetched in found), list(found[0].counters)

    def _compute(self, minibatch: int, unit: Unit) -> Sums:
        """One gradient, added to the unit's sums; and the local step."""
        ours, full = self.spec.layout.parameters_end, self._sums[0]
        total = full if self._total is None else self._total
        first = minibatch == unit.first
        if not first and not len(self._scratch):
            self._scratch = torch.zeros_like(total)
        gradient = total if first else self._scratch
        found = self._gradients.compute(minibatch, self._weights, self._counters, gradient)
        if not math.isfinite(found.loss):  # before it reaches a shard
            at = f"minibatch {minibatch} of {self.spec.order.num_steps}, on {self.here.name}"
            raise DivergedError(
                f"the loss is {found.loss} at {at}",
                [("to do", "a smaller lr.base, a warm start (downpour.warm_start=1ep), or fewer replicas")],
            )
        if not first:
            total[:ours].add_(gradient[:ours])
        if self.spec.fetch_every > 1 and (rate := self.spec.local_rate(minibatch)):  # else the next fetch undoes it
            self._weights[:ours].add_(gradient[:ours], alpha=-rate)
        if minibatch == unit.minibatches[-1]:
            total[ours:].copy_(self._weights[ours:])
            if total is not full:
                full.copy_(total)
        return found

    async def _pushed(
        self,
        unit: Unit,
        full: torch.Tensor,
        sums: Sums,
        base: tuple[Version, ...],
        fetching: bool,
        spent: tuple[float, float],
    ) -> None:
        """Pushes a unit's sums to all shards and notes what they answered.

        Arguments:
            spent: seconds that the unit took, and of these, stood still; from hand-over to hand-over.
        """
        self._number += 1
        without = tuple(index for index, got in enumerate(sums.touched) if not got)
        pushes = [
            Push(self._sender, self._number, unit, version, without, tuple(sums.counters) if not index else ())
            for index, version in enumerate(base)
        ]
        receipts = await self._client.push(pushes, full, fetching)
        if fetching:
            found = [receipt.fetched for receipt in receipts]
            assert found[0] is not None
            self._coming = tuple(f.version for f in found if f is not None), list(found[0].counters)
        self._refetch = any(self._is_new(*pair) for pair in zip(receipts, base, strict=True))
        answers = tuple(Receipt(receipt.outcome, receipt.staleness, receipt.version) for receipt in receipts)
        self._errands.settled.append(
            Settled(unit, answers, sums.loss, sums.count, sums.samples, sums.metrics, spent[0], spent[1])
        )

    @staticmethod
    def _is_new(receipt: Receipt, base: Version) -> bool:
        """Whether a shard was restarted since its weights were fetched: what it has now is older, and another."""
        return receipt.version.incarnation != base.incarnation
