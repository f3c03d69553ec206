"""What came of the portions: counts that must add up, evaluation by evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from squall.data.order import Order
from squall.errors import RunError
from squall.optim.lbfgs import Ended, State
from squall.server.messages import Settled
from squall.strategy.sandblaster.batch import Batch


class Tally:
    """Counts over a run; with all sessions before.

    Arguments:
        order: the training set's portions.
        carried: of the session before (`state`).

    Attributes:
        samples: in all evaluations.
    """

    def __init__(self, order: Order, carried: Mapping[str, Any] | None = None) -> None:
        self._order = order
        carried = carried or {}
        self._evaluations = int(carried.get("evaluated", 0))
        self._portions = int(carried.get("portions", 0))
        self.samples = int(carried.get("samples", 0))
        self._spent = {"compute": 0.0, "communication": 0.0}
        self._inexact = int(carried.get("inexact", 0))
        self._wasted = int(carried.get("wasted", 0))
        self._set_backs = int(carried.get("set_backs", 0))
        self._redone = int(carried.get("redone", 0))
        self._by_replica = {name: dict(own) for name, own in carried.get("replicas", {}).items()}

    def add(self, replica: str, settled: Settled, counted: bool) -> None:
        """Notes a unit that a replica has computed, and whether it is part of the batch, or came too late."""
        own = self._by_replica.setdefault(
            replica, {"units": 0, "portions": 0, "samples": 0, "seconds": 0.0, "stalled": 0.0}
        )
        own["units"] += 1
        own["portions"] += settled.unit.count
        own["samples"] += settled.samples
        own["seconds"] += settled.seconds
        own["stalled"] += settled.stalled
        self._wasted += settled.unit.count * (not counted)
        self._spent["compute"] += settled.seconds - settled.stalled
        self._spent["communication"] += settled.stalled

    def evaluated(self, batch: Batch) -> None:
        """Takes a batch in that is complete.

        Raises:
            RunError: not each sample is in it once.
        """
        expected = sum(self._order.step(portion).num_samples for portion in range(self._order.num_steps))
        if batch.samples != expected:
            raise RunError(
                f"evaluation {batch.number} does not add up",
                [("found", f"{batch.samples} samples"), ("expected", f"{expected}")],
            )
        self._evaluations += 1
        self._portions += batch.portions
        self.samples += batch.samples

    def spent(self) -> dict[str, float]:
        """Where the replicas' time went since this was last asked."""
        found, self._spent = self._spent, dict.fromkeys(self._spent, 0.0)
        return found

    def closed(self, exact: bool) -> None:
        """Notes whether a gradient's bits are those of any order."""
        self._inexact += not exact

    def set_back(self, iterations: int) -> None:
        """Notes that a shard's death cost so many iterations."""
        self._set_backs += 1
        self._redone += iterations

    def state(self) -> dict[str, Any]:
        """The counts as plain values, for a session that goes on."""
        return {
            "evaluated": self._evaluations,
            "portions": self._portions,
            "samples": self.samples,
            "inexact": self._inexact,
            "wasted": self._wasted,
            "set_backs": self._set_backs,
            "redone": self._redone,
            "replicas": {name: dict(own) for name, own in self._by_replica.items()},
        }

    def values(self, state: State | None, ended: Ended | None) -> dict[str, Any]:
        """For result.json."""
        found: dict[str, Any] = {
            "evaluations": self._evaluations,
            "inexact": self._inexact,
            "portions": {"counted": self._portions, "wasted": self._wasted},
            "samples": self.samples,
            "set_backs": {"times": self._set_backs, "iterations": self._redone},
            "replicas": self._by_replica,
        }
        if state is not None:
            found |= {
                "iterations": state.iterations,
                "loss": state.value,
                "gradient_norm": state.history.gradient_norm,
                "pairs": {"kept": state.kept, "damped": state.damped, "skipped": state.skipped},
                "restarts": state.restarts,
            }
        if ended is not None:
            found["minimum"] = {"outcome": ended.outcome, "why": ended.why, "advice": ended.advice}
        return found
