"""What goes wrong in a cluster, and what things take there, as data: read by the simulated engine."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

FaultKind = Literal["kill", "slow", "drop", "delay", "duplicate"]


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        kind: kill: the role's process dies; slow: its work takes `by` times as long; drop: messages from and to it are
            lost; delay: they take `by` seconds longer; duplicate: they arrive twice.
        role: its name in the program, such as "replica-3".
        at: seconds of the run, over all its sessions: one that began later sees no kill again, but who died for good
            stays dead.
        lasts: seconds; of a kill: until it is started again. inf: for good. None: of a kill the engine's own time,
            else for good.
        by: factor or seconds, see kind.
    """

    kind: FaultKind
    role: str
    at: float
    lasts: float | None = None
    by: float = 1.0

    def is_on(self, now: float) -> bool:
        """Whether it is so at this second of the run; not of a kill, which is a moment."""
        return self.at <= now < self.at + (inf if self.lasts is None else self.lasts)


@dataclass(frozen=True)
class Costs:
    """What work and messages take in a simulated cluster.

    Attributes:
        minibatch: seconds of one replica's minibatch, the mean.
        spread: sigma of the log-normal factor on each minibatch.
        stragglers: fraction of the replicas that are slower for good.
        slowdown: their factor.
        latency: seconds of a message, whatever its size.
        bandwidth: bytes a second of each machine's link, each way.
        server: bytes a second that a shard reads and writes while it works.
    """

    minibatch: float = 0.12
    spread: float = 0.2
    stragglers: float = 0.05
    slowdown: float = 3.0
    latency: float = 0.0002
    bandwidth: float = 1.25e9
    server: float = 5e9
