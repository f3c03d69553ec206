"""What came of the pushes: counts that must add up, on each shard and over all.

Whatever happens, each minibatch of the run ends on each shard as applied, dropped (too stale) or lost (the shard was
restarted from a snapshot without it). The shards say what they hold; the replicas' reports say what they were answered.
Two independent counts: they are held against each other at the end.

Sessions that end without a word leave the two apart, by a few minibatches: the counts are as old as the last set of
snapshots, which is made a moment after them. What the shards hold and nobody has reported is "unreported"; what was
reported and is in no snapshot any more is computed again, "redone". With these, all sessions' counts add up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from squall.data.order import Order
from squall.errors import RunError
from squall.server.leases import Pool
from squall.server.messages import Holdings, Settled, Version
from squall.server.shard import APPLIED, DROPPED


class Tally:
    """Counts over a run.

    Arguments:
        shards: their number.
        order: the run's minibatches.
    """

    def __init__(self, shards: int, order: Order) -> None:
        self._order, minibatches = order, order.num_steps
        self._versions: list[int] = [0] * shards
        self._held = [bytearray(minibatches) for _ in range(shards)]
        self._lost: list[set[int]] = [set() for _ in range(shards)]
        self._reported = bytearray(minibatches)
        self._unreported = self._redone = 0
        self._restarts = [0] * shards
        self._answers: list[Counter[str]] = [Counter() for _ in range(shards)]
        self._computed = self._repeated = self._samples = 0
        self._staleness: Counter[int] = Counter()
        self._unknown = 0
        self._by_replica: dict[str, dict[str, float]] = {}

    def restore(self, held: Sequence[Holdings], carried: Mapping[str, Any] | None) -> None:
        """Begins with what shards hold already, and with the counts of earlier sessions (`state`)."""
        if carried is not None:
            self._load(carried)
        for index, holdings in enumerate(held):
            self._versions[index] = holdings.version.incarnation
            self._held[index] = bytearray(holdings.states)
        for minibatch, states in enumerate(zip(*self._held, strict=True)):
            there = all(states)
            if there == bool(self._reported[minibatch]):
                continue
            self._reported[minibatch] = there
            samples = self._order.step(minibatch).num_samples
            if there:
                self._unreported, self._samples = self._unreported + 1, self._samples + samples
            else:
                self._redone, self._samples = self._redone + 1, self._samples - samples

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
            "reported": list(_runs(self._reported)),
            "unreported": self._unreported,
            "redone": self._redone,
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        for first, stop in state["reported"]:
            self._reported[first:stop] = b"\1" * (stop - first)
        self._unreported, self._redone = state["unreported"], state["redone"]
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
        if first:
            self._samples += settled.samples
            self._reported[settled.unit.first : settled.unit.first + settled.unit.count] = b"\1" * settled.unit.count
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
        """Minibatches that a shard was known to hold and holds no more, those aside that were lost before."""
        before, self._lost[shard] = self._lost[shard], self._gone(shard, holdings)
        return len(self._lost[shard] - before)

    def _gone(self, shard: int, holdings: Holdings) -> set[int]:
        both = enumerate(zip(self._held[shard], holdings.states, strict=True))
        return {minibatch for minibatch, (known, state) in both if known and not state}

    def values(self, held: Sequence[Holdings], pool: Pool) -> dict[str, Any]:
        """The counts for result.json.

        Raises:
            RunError: they do not add up.
        """
        shards = []
        for index, holdings in enumerate(held):
            self.is_restarted(index, holdings.version)
            counts = Counter(holdings.states)
            lost = len(self._gone(index, holdings))
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
        if sum(self._reported) != pool.settled:
            raise RunError(
                "the replicas' reports do not close",
                [("found", f"{sum(self._reported)} minibatches"), ("expected", f"{pool.settled} that are settled")],
            )
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
            "minibatches": {
                "settled": pool.settled,
                "of": pool.total,
                "unreported": self._unreported,
                "redone": self._redone,
                "shards": shards,
            },
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


def _runs(flags: bytearray) -> Iterator[list[int]]:
    """Where flags are set: [first, stop) after [first, stop)."""
    stop = 0
    while (first := flags.find(1, stop)) >= 0:
        end = flags.find(0, first)
        stop = len(flags) if end < 0 else end
        yield [first, stop]
