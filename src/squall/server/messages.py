"""What replicas, shards and the coordinator say to each other: plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["applied", "dropped", "repeated"]


@dataclass(frozen=True, order=True)
class Version:
    """The state of a shard: which incarnation of it, and how many pushes that state holds."""

    incarnation: int
    count: int


@dataclass(frozen=True)
class Sender:
    """Who speaks: a replica, and which incarnation of it."""

    name: str
    incarnation: int


@dataclass(frozen=True)
class Unit:
    """Minibatches that are computed by one replica and pushed at once: first .. first + count - 1 of the run."""

    first: int
    count: int

    @property
    def minibatches(self) -> range:
        """Their numbers in the run."""
        return range(self.first, self.first + self.count)


@dataclass(frozen=True)
class Push:
    """What comes with a gradient.

    Attributes:
        sender, number: whose push, and which of its pushes: applied once, however often it arrives.
        unit: the minibatches whose gradients it sums.
        base: the shard's version that the oldest of these gradients was computed with.
        without: parameters that got no gradient in any of them.
        counters: how the integer buffers changed (shard 0 keeps them).
    """

    sender: Sender
    number: int
    unit: Unit
    base: Version
    without: tuple[int, ...] = ()
    counters: tuple[int, ...] = ()


@dataclass(frozen=True)
class Fetch:
    """A request for weights: whose, and which; one that arrives twice is carried out once.

    Attributes:
        vector: its name, where a shard has several.
    """

    sender: Sender
    number: int
    vector: str = ""


@dataclass(frozen=True)
class Fetched:
    """What comes with weights: their version, and shard 0's integer buffers."""

    version: Version
    counters: tuple[int, ...] = ()


@dataclass(frozen=True)
class Receipt:
    """What a shard did with a push.

    Attributes:
        outcome: applied; dropped as too stale; repeated: the shard had dealt with these minibatches before.
        staleness: pushes applied since `base`; None where the shard was restarted in between, or the push is repeated.
        version: the shard's, afterwards.
        fetched: what a fetch would have said, where the push asked for one.
    """

    outcome: Outcome
    staleness: int | None
    version: Version
    fetched: Fetched | None = None


@dataclass(frozen=True)
class Settled:
    """A unit that all shards have answered for, as its replica reports it.

    Attributes:
        unit: of minibatches.
        receipts: of the shards, by number.
        loss, count: sums over the unit.
        samples: read for it.
        metrics: (sum, count) by name.
        seconds: of the replica, from the hand-over of the push before to the hand-over of this one.
        stalled: of these, that its computing stood still for fetches, pushes and minibatches.
        evaluation: of a batch that the unit belongs to; -1 where there are none.
        losses: of each minibatch, where they are added up in their order.
        counters: how the integer buffers changed in each minibatch, where they all begin with the same.
    """

    unit: Unit
    receipts: tuple[Receipt, ...]
    loss: float
    count: float
    samples: int
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)
    seconds: float = 0.0
    stalled: float = 0.0
    evaluation: int = -1
    losses: tuple[float, ...] = ()
    counters: tuple[int, ...] = ()


@dataclass(frozen=True)
class Ask:
    """A replica reports what it has settled and asks for minibatches.

    Attributes:
        number: rises with each ask of an incarnation; one that is repeated gets the same answer.
        wanted: minibatches; 0: none, it only reports.
        patient: it has nothing else in hand, so that the answer may wait until there is something.
    """

    sender: Sender
    number: int
    settled: tuple[Settled, ...]
    wanted: int
    patient: bool = True


@dataclass(frozen=True)
class Lease:
    """The answer to an ask: minibatches to compute, or none; then whether that is for good.

    Attributes:
        evaluation: of a batch that the unit belongs to; -1 where there are none.
        counters: the integer buffers that all its minibatches begin with.
    """

    unit: Unit | None
    over: bool = False
    evaluation: int = -1
    counters: tuple[int, ...] = ()


@dataclass(frozen=True)
class Holdings:
    """What a shard has applied.

    Attributes:
        version: of the shard.
        states: a byte for each minibatch of the run: 0 not seen, 1 applied, 2 dropped as too stale.
        received: pushes that came, by what became of them.
    """

    version: Version
    states: bytes
    received: dict[str, int]
