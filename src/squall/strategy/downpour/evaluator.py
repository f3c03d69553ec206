"""The evaluator: measures the server's model, as it is at that moment, while the replicas go on.

What is measured is what the shards hold, weights and merged buffers, never a replica's copy: that is the model that the
run saves, and no replica has it. Weights are fetched when they are asked to be measured, and wait in line where
measuring takes longer than an epoch: each epoch's numbers are of its own weights, up to `_MOST_COPIES` epochs behind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from squall.cluster.program import Promise, Role, Task
from squall.server.client import Client, so_far
from squall.server.layout import Layout, Slice

Averages = tuple[dict[str, float], dict[str, float]]
Measure = Callable[[torch.Tensor, list[int]], Averages]
"""(vector, counters) -> averages on the validation set and on the test set."""

_MOST_COPIES = 4
"""Of the weights; beyond, who is next in line fetches its own later."""


@dataclass(frozen=True)
class EvaluatorSpec:
    """What an evaluator is told; as of `ReplicaSpec`."""

    layout: Layout
    slices: tuple[Slice, ...]
    patience: float = 600.0


class Evaluator(Role):
    """Measures when it is asked to.

    Arguments:
        spec: of the evaluator.
        make: gives what measures; called where it computes.
    """

    def __init__(self, spec: EvaluatorSpec, make: Callable[[], Measure]) -> None:
        self.spec, self._make = spec, make

    async def begin(self) -> None:
        """Builds the network and opens the sets."""
        layout = self.spec.layout
        self._measure = await self.here.compute(self._make)
        self._client = Client(self.here, self.spec.slices, layout.dtype, self.spec.patience)
        self._measuring: dict[int, Task[Averages]] = {}
        self._copies, self._line = 0, self.here.promise()
        self._line.keep()

    async def ready(self) -> None:
        """Says that it has begun."""

    async def measure(self, epoch: int) -> Averages | None:
        """The server's model as it is when this is first asked: averages on the validation set and on the test set.

        None while it is at it; one that asks again for the same epoch gets the same answer.
        """
        if epoch not in self._measuring:
            before, self._line = self._line, self.here.promise()
            self._measuring[epoch] = self.here.start(self._measured(before, self._line))
        return await so_far(self.here, self._measuring[epoch])

    async def _measured(self, before: Promise, fetched: Promise) -> Averages:
        """`before` says that the client is free; so does `fetched`, to the next."""
        await before
        found = await self._client.fetch()
        weights = torch.empty(self.spec.layout.size, dtype=self.spec.layout.dtype)
        await self.here.beside(lambda: self._client.take(weights))
        self._copies += 1
        if self._copies < _MOST_COPIES:
            fetched.keep()
        measured = await self.here.compute(lambda: self._measure(weights, list(found[0].counters)))
        self._copies -= 1
        fetched.keep()
        return measured
