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
from squall.server.client import NOT_YET_S, Client, so_far
from squall.server.layout import Layout, Slice

Averages = tuple[dict[str, float], dict[str, float]]
Measure = Callable[[torch.Tensor, list[int]], Averages]
"""(vector, counters) -> averages on the validation set and on the test set."""

_MOST_COPIES = 4
"""Of the weights; beyond, who is next in line fetches its own later."""


@dataclass(frozen=True)
class EvaluatorSpec:
    """What an evaluator is told; as of `ReplicaSpec`.

    Attributes:
        vector: which one it measures, where shards have several.
    """

    layout: Layout
    slices: tuple[Slice, ...]
    patience: float = 600.0
    vector: str = ""


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
        self._client = Client(self.here, self.spec.slices, layout.dtype, self.spec.patience, self.spec.vector)
        self._measuring: dict[int, Task[Averages]] = {}
        self._copying: dict[int, Promise] = {}
        self._copies, self._line = 0, self.here.promise()
        self._line.keep()

    async def ready(self) -> None:
        """Says that it has begun."""

    async def copied(self, epoch: int, counters: tuple[int, ...] | None = None) -> bool | None:
        """Says that it has a copy of the model as it was after this was first asked; None while it has none yet.

        Arguments:
            counters: values of the integer buffers; None: shard 0 knows.
        """
        self._begin(epoch, counters)
        await self.here.first_of(self._copying[epoch], within=NOT_YET_S)
        return True if self._copying[epoch].done else None

    async def measure(self, epoch: int) -> Averages | None:
        """The server's model as it is when this or `copied` is first asked: averages on the validation and test sets.

        None while it is at it; one that asks again for the same epoch gets the same answer.
        """
        self._begin(epoch, None)
        return await so_far(self.here, self._measuring[epoch])

    def _begin(self, epoch: int, counters: tuple[int, ...] | None) -> None:
        if epoch not in self._measuring:
            before, self._line = self._line, self.here.promise()
            self._copying[epoch] = self.here.promise()
            self._measuring[epoch] = self.here.start(self._measured(epoch, counters, before, self._line))

    async def _measured(
        self, epoch: int, counters: tuple[int, ...] | None, before: Promise, fetched: Promise
    ) -> Averages:
        """`before` says that the client is free; so does `fetched`, to the next."""
        await before
        found = await self._client.fetch()
        weights = torch.empty(self.spec.layout.size, dtype=self.spec.layout.dtype)
        await self.here.beside(lambda: self._client.take(weights))
        self._copying[epoch].keep()
        self._copies += 1
        if self._copies < _MOST_COPIES:
            fetched.keep()
        measured = await self.here.compute(
            lambda: self._measure(weights, list(found[0].counters if counters is None else counters))
        )
        self._copies -= 1
        fetched.keep()
        return measured
