"""How long things take in simulated time: gradients, server work, messages.

A minibatch of a replica takes the mean time, times a log-normal factor of its own (mean one), times the replica's
slowness. A message takes the link's latency, a little more or less, and its bytes their time on the sender's line out
and the receiver's line in, one message after the other: two hundred replicas that push to one shard queue up there.
"""

from __future__ import annotations

import math
import random

from squall.cluster.fault import Costs
from squall.cluster.program import Cost

_HEADER = 256  # bytes of a message besides its tensor
_LEAST, _MOST = 0.5, 1.5  # of the latency


class Network:
    """The times of one simulated cluster.

    Arguments:
        costs: of its machines and links.
        seed: of all its random numbers.
    """

    def __init__(self, costs: Costs, seed: int) -> None:
        self._costs, self._seed = costs, seed
        self._random = random.Random(seed)
        self._lines: dict[tuple[str, str], float] = {}

    def slowness(self, role: str) -> float:
        """The factor of a role that is a straggler for good, or 1."""
        chance = random.Random(f"{self._seed} straggler {role}").random()
        return self._costs.slowdown if chance < self._costs.stragglers else 1.0

    def seconds(self, cost: Cost) -> float:
        """How long a piece of work takes on a machine that is not slow."""
        found = cost.bytes / self._costs.server
        if cost.minibatches:
            spread = self._costs.spread
            factor = math.exp(self._random.gauss(0.0, spread) - spread * spread / 2) if spread else 1.0
            found += cost.minibatches * self._costs.minibatch * factor
        return found

    def arrival(self, now: float, sender: str, receiver: str, num_bytes: int) -> float:
        """When a message that is sent now has arrived; keeps the lines busy until then."""
        out, into = (sender, "out"), (receiver, "in")
        begin = max(now, self._lines.get(out, 0.0), self._lines.get(into, 0.0))
        end = begin + (_HEADER + num_bytes) / self._costs.bandwidth
        self._lines[out] = self._lines[into] = end
        return end + self._costs.latency * (_LEAST + (_MOST - _LEAST) * self._random.random())
