"""The evaluator: measures the server's model, as it is at that moment, while the replicas go on.

What is measured is what the shards hold, weights and merged buffers, never a replica's copy: that is the model that the
run saves, and no replica has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from squall.cluster.program import Role
from squall.server.client import Client
from squall.server.layout import Layout, Slice

Averages = tuple[dict[str, float], dict[str, float]]
Measure = Callable[[torch.Tensor, list[int]], Averages]
"""(vector, counters) -> averages on the validation set and on the test set."""


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
        self._weights = torch.zeros(layout.size, dtype=layout.dtype)
        self._client = Client(self.here, self.spec.slices, layout.dtype, self.spec.patience)
        self._epoch = -1

    async def measure(self, epoch: int) -> Averages:
        """The server's model now: averages on the validation set and on the test set.

        It may take longer than a call; one that asks again for the same epoch waits for the same answer.
        """
        if epoch != self._epoch:
            self._epoch, self._measuring = epoch, self.here.start(self._measured())
        return await self._measuring

    async def _measured(self) -> Averages:
        found = await self._client.fetch()

        def work() -> Averages:
            self._client.take(self._weights)
            return self._measure(self._weights, list(found[0].counters))

        return await self.here.compute(work)
