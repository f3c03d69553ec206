"""What came of the pushes: counts that must add up, on each shard and over all.

Whatever happens, each minibatch of the run ends on each shard as applied, dropped (too stale) or lost (the shard was
restarted from a snapshot without it). The shards say what they hold; the replicas' reports say what they were answered.
Two independent counts: they are held against each other at the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from squall.errors import RunError
from squall.server.leases import Pool
from squall.server.messages import Holdings, Settled, Version
from squall.server.shard import APPLIED, DROPPED


@dataclass
class Epoch:
    """Sums over the units that were settled since a mark."""

    began: float
    loss: float = 0.0
    count: float = 0.0
    samples: int = 0
    took: float = 0.0
    stalled: float = 0.0
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, settled: Settled) -> None:
        """Takes a unit in."""
        self.loss, self.count = self.loss + settled.loss, self.count + settled.count
        self.samples += settled.samples
        self.took, self.stalled = self.took + settled.seconds, self.stalled + settled.stalled
        for name, (total, count) in settled.metrics.items():
            before = self.metrics.get(name, (0.0, 0.0))
            self.metrics[name] = before[0] + total, before[1] + count


class Tally:
    """Counts over a run.

    Arguments:
        shards: their number.
        minibatches: of the run.
    """

    def __init__(self, shards: int, minibatches: int) -> None:
        self._versions: list[int] = [0] * shards
        self._held = [bytearray(minibatches) for _ in range(shards)]
        self._restarts = [0] * shards
        self._answers: list[Counter[str]] = [Counter() for _ in range(shards)]
        self._computed = self._repeated = self._samples = 0
        self._staleness: Counter[int] = Counter()
        self._unknown = 0
        self._by_replica: dict[str, dict[str, float]] = {}

    def restore(self, held: Sequence[Holdings]) -> None:
        """Begins with what shards hold already."""
        for index, holdings in enumerate(held):
            self._versions[index] = holdings.version.incarnation
            self._held[index] = bytearray(holdings.states)

    def state(self) -> dict[str, Any]:
        """The counts so far as plain values, for a session that goes on."""
        return {
            "computed": self._computed,
            "repeated": self._repeated,
            "samples": self._samples,
            "answers": [dict(answers) for answers in self._answers],
            "restarts": list(self._restarts),
            "staleness": {str(key): number for key, number in self._staleness.items()},
            "unknown": self._unknown,
            "replicas": {name: dict(own) for name, own in self._by_replica.items()},
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state`."""
        self._computed, self._repeated, self._samples = state["computed"], state["repeated"], state["samples"]
        self._answers = [Counter(answers) for answers in state["answers"]]
        self._restarts = list(state["restarts"])
        self._staleness = Counter({int(key): number for key, number in state["staleness"].items()})
        self._unknown = state["unknown"]
        self._by_replica = {name: dict(own) for name, own in state["replicas"].items()}

    def add(self, replica: str, settled: Settled, first: bool) -> None:
        """Notes a report; `first`: of the unit."""
        self._computed += 1
        self._repeated += not first
        own = self._by_replica.setdefault(
            replica, {"pushes": 0, "minibatches": 0, "samples": 0, "seconds": 0.0, "stalled": 0.0}
        )
        own["pushes"] += 1
        own["minibatches"] += settled.unit.count
        own["samples"] += settled.samples
        own["seconds"] += settled.seconds
        own["stalled"] += settled.stalled
        self._samples += settled.samples if first else 0
        for index, receipt in enumerate(settled.receipts):
            self._answers[index][receipt.outcome] += 1
            if receipt.staleness is None:
                self._unknown += 1
            else:
                self._staleness[receipt.staleness] += 1
            state = DROPPED if receipt.outcome == "dropped" else APPLIED
            for minibatch in settled.unit.minibatches:
                if not self._held[index][minibatch]:
                    self._held[index][minibatch] = state

    def is_restarted(self, shard: int, version: Version) -> bool:
        """Whether an answer comes from a later incarnation of a shard than any before; says so once."""
        if version.incarnation <= self._versions[shard]:
            return False
        self._versions[shard] = version.incarnation
        self._restarts[shard] += 1
        return True

    def restarted(self, shard: int, holdings: Holdings) -> int:
        """Minibatches that a shard was known to hold and holds no more."""
        return sum(1 for known, state in zip(self._held[shard], holdings.states, strict=True) if known and not state)

    def values(self, held: Sequence[Holdings], pool: Pool) -> dict[str, Any]:
        """The counts for result.json.

        Raises:
            RunError: they do not add up.
        """
        shards = []
        for index, holdings in enumerate(held):
            self.is_restarted(index, holdings.version)
            counts = Counter(holdings.states)
            lost = self.restarted(index, holdings)
            unknown = sum(
                1 for known, state in zip(self._held[index], holdings.states, strict=True) if state and not known
            )
            found = {
                "applied": counts[APPLIED],
                "dropped": counts[DROPPED],
                "lost": lost,
                "restarts": self._restarts[index],
            }
            shards.append(found)
            self._check(index, found, unknown, pool)
        known = sum(self._staleness.values())
        total = sum(staleness * number for staleness, number in self._staleness.items())
        return {
            "pushes": {
                "computed": self._computed,
                "repeated": self._repeated,
                "shards": [
                    {outcome: answers[outcome] for outcome in ("applied", "dropped", "repeated")}
                    for answers in self._answers
                ],
            },
            "minibatches": {"settled": pool.settled, "of": pool.total, "shards": shards},
            "staleness": {
                "mean": total / known if known else None,
                "most": max(self._staleness, default=None),
                "counts": {str(key): self._staleness[key] for key in sorted(self._staleness)},
                "unknown": self._unknown,
            },
            "replicas": self._by_replica,
            "samples": self._samples,
        }

    def _check(self, index: int, found: dict[str, int], unknown: int, pool: Pool) -> None:
        settled = found["applied"] + found["dropped"] + found["lost"] - unknown
        if settled != pool.settled or (found["lost"] and not found["restarts"]):
            raise RunError(
                f"the ledger of shard {index} does not close",
                [
                    (
                        "found",
                        f"{found['applied']} minibatches applied, {found['dropped']} dropped, {found['lost']} lost",
                    ),
                    ("expected", f"{pool.settled} that replicas reported as settled"),
                ],
            )
