"""A replica of batch optimisation: it computes portions of the batch at the trial, and pushes their sums.

Dean et al. 2012, section 4.2: the weights are fetched once for each evaluation of the batch; gradients of a few
portions, a unit, are added up here and pushed at once, so that little is lost with a replica and little travels::

    lease   [unit 3 of evaluation 7]   [unit 4]  ...                 asked for ahead, while the unit before is computed
    fetch   ===>|                                                    once an evaluation
    sums        | p12 + p13 + p14 + p15 | p16 + ...                  gradients of sums of losses, not of means
    push                                |====>|                      while the next unit is computed

A unit whose evaluation is over by then is refused by the shards, and nothing comes of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

from squall.cluster.program import Cost, Role, Task
from squall.data.order import Order
from squall.optim.lbfgs import TRIAL
from squall.server.client import Client
from squall.server.gradients import Sums
from squall.server.layout import Layout, Slice
from squall.server.messages import Lease, Push, Receipt, Sender, Settled, Unit, Version
from squall.strategy.errands import Errands


@dataclass(frozen=True)
class ReplicaSpec:
    """What a replica is told.

    Attributes:
        layout, slices: of the vectors and their shards.
        order: the training set's portions, as the minibatches of one epoch.
        unit: portions that are handed out at once.
        patience: seconds of silence after which another role is given up.
        coordinator: its role's name.
    """

    layout: Layout
    slices: tuple[Slice, ...]
    order: Order
    unit: int
    patience: float = 600.0
    coordinator: str = "coordinator"


class Computes(Protocol):
    """What a replica computes with: `squall.server.gradients.Gradients`, or anything that gives sums of portions."""

    device: torch.device

    def compute(
        self, minibatch: int, weights: torch.Tensor, counters: list[int], into: torch.Tensor, *, mean: bool = True
    ) -> Sums:
        """As of `Gradients.compute`; `mean` is False here."""


class Replica(Role):
    """Computes portions for as long as there are any.

    Arguments:
        spec: of the replica.
        make: gives what the process computes with; called there.
    """

    def __init__(self, spec: ReplicaSpec, make: Callable[[], Computes]) -> None:
        self.spec, self._make = spec, make

    async def begin(self) -> None:
        """Builds the network, or borrows it."""
        here, layout = self.here, self.spec.layout
        self._gradients: Computes = await here.compute(self._make)
        device = self._gradients.device
        self._weights = torch.zeros(layout.size, dtype=layout.dtype, device=device)
        self._sums = [here.memory(layout.size, layout.dtype) for _ in range(2)]
        self._total = torch.zeros_like(self._weights) if device.type != "cpu" else None
        self._scratch = torch.empty(0, dtype=layout.dtype, device=device)
        self._client = Client(here, self.spec.slices, layout.dtype, self.spec.patience, TRIAL)
        self._sender = Sender(here.name, here.incarnation)
        self._base: tuple[Version, ...] = ()
        self._errands = Errands(here, self.spec.coordinator, self.spec.patience)
        self._number = 0
        self._pushing: Task[Any] | None = None

    async def main(self) -> None:
        """Works until the coordinator says that the run is over."""
        here, spec, errands = self.here, self.spec, self._errands
        lease = await errands.next(spec.unit)
        began, stalled = here.now(), errands.stalled
        while lease.unit is not None:
            ahead = here.start(errands.ask(spec.unit, patient=False))
            if await self._is_at(lease.evaluation):
                sums, losses = Sums(), []
                for portion in lease.unit.minibatches:
                    cost = Cost(minibatches=spec.order.step(portion).num_samples / spec.order.global_batch_size)
                    found = await here.compute(partial(self._compute, portion, lease.unit, lease.counters), cost)
                    losses.append(found.loss)
                    sums.add(found)
                await errands.wait_for(self._pushing)
                full, _ = self._sums
                self._sums.reverse()
                now = here.now()
                spent, began, stalled = (now - began, errands.stalled - stalled), now, errands.stalled
                self._pushing = here.start(self._pushed(lease, full, sums, tuple(losses), self._base, spent))
            else:
                errands.settled.append(self._refused(lease))
            lease = await errands.wait_for(ahead)
            if lease.unit is None and not lease.over:
                await errands.wait_for(self._pushing)  # what it has is settled before it waits for more
                lease = await errands.wait_for(here.start(errands.next(spec.unit)))
        await errands.wait_for(self._pushing)
        await errands.ask(0, patient=False)

    async def _is_at(self, evaluation: int) -> bool:
        """Fetches the trial of an evaluation, unless it is there; False where the shards are elsewhere by now."""
        if not self._base or any(version.count != evaluation for version in self._base):
            found = await self._errands.wait_for(self.here.start(self._client.fetch()))
            self._base = tuple(fetched.version for fetched in found)
            self._client.take(self._weights)
            self._buffers = self._weights[self.spec.layout.parameters_end :].clone()
        return all(version.count == evaluation for version in self._base)

    def _refused(self, lease: Lease) -> Settled:
        """The report of a unit that is not computed: the shards are not where its evaluation is."""
        assert lease.unit is not None
        receipts = tuple(Receipt("dropped", None, version) for version in self._base)
        return Settled(lease.unit, receipts, 0.0, 0.0, 0, evaluation=lease.evaluation)

    def _compute(self, portion: int, unit: Unit, counters: tuple[int, ...]) -> Sums:
        """One portion's sums, added to the unit's."""
        ours, full = self.spec.layout.parameters_end, self._sums[0]
        total = full if self._total is None else self._total
        first = portion == unit.first
        if not first and not len(self._scratch):
            self._scratch = torch.zeros_like(total)
        into = total if first else self._scratch
        found = self._gradients.compute(portion, self._weights, list(counters), into, mean=False)
        torch.mul(self._weights[ours:], found.samples, out=into[ours:])
        self._weights[ours:].copy_(self._buffers)  # each portion begins with the same
        if not first:
            total.add_(into)
        if portion == unit.minibatches[-1] and total is not full:
            full.copy_(total)
        return found

    async def _pushed(
        self,
        lease: Lease,
        full: torch.Tensor,
        sums: Sums,
        losses: tuple[float, ...],
        base: tuple[Version, ...],
        spent: tuple[float, float],
    ) -> None:
        """Pushes a unit's sums to all shards and notes what they answered; arguments as of `Settled`."""
        assert lease.unit is not None
        self._number += 1
        receipts = await self._client.push([Push(self._sender, self._number, lease.unit, each) for each in base], full)
        self._errands.settled.append(
            Settled(
                lease.unit,
                tuple(receipts),
                sums.loss,
                sums.count,
                sums.samples,
                sums.metrics,
                *spent,
                evaluation=lease.evaluation,
                losses=losses,
                counters=tuple(change // lease.unit.count for change in sums.counters),
            )
        )
