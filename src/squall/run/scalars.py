"""A run's records as named numbers, the same in every tracker: losses, metrics, rate, speed, and where the time went.

Steps come in thousands a second at times and nobody looks at each: one a second is kept. Pushes of replicas come on a
clock that may be virtual: they are averaged over a thousandth of the run. A point stands at the index of the last
update before it. That is how steps and epochs count already; and it means that whatever a resumed run writes again has
an index of at least its first step, so that a tracker can tell it from what came before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from squall.records import EpochEnded, Logged, Pushed, Record, Started, Stepped

_STEP_S = 1.0
_POINTS = 1000  # of a run's pushes
_TEXTS = ("weights_sha256", "fingerprint_sha256")


class Point(NamedTuple):
    """Numbers by name at one step; `thin` says that it is one of many alike, and may be lost."""

    step: int
    values: Mapping[str, float]
    thin: bool = False


class Scalars:
    """Turns one record after the other into a point."""

    def __init__(self) -> None:
        self._stepped = -math.inf
        self._stretch, self._until = 1, 0
        self._pushes: list[Pushed] = []

    def __call__(self, record: Record) -> Point | None:
        """The record's numbers; None where it has none, or where it is one of many alike that make one point."""
        match record:
            case Started():
                self._stretch, self._until = max(record.num_steps // _POINTS, 1), record.start_step
            case Pushed():
                self._pushes.append(record)
                if record.settled >= self._until + self._stretch:
                    pushes, self._pushes, self._until = self._pushes, [], record.settled
                    return Point(record.settled - 1, _of_pushes(pushes), thin=True)
            case Stepped() if record.seconds - self._stepped >= _STEP_S:
                self._stepped = record.seconds
                return Point(record.step, {"step/loss": record.loss, **_rate("step/lr", record.lr)}, thin=True)
            case EpochEnded():
                return Point(record.step, _of_epoch(record))
            case Logged():
                values = {f"log/{name}": value for name, value in record.values.items()}
                return Point(max(record.step - 1, 0), values)  # it counts updates
        return None


def of_result(result: Mapping[str, Any]) -> dict[str, float | str]:
    """What of a run's result belongs beside its curves: its numbers, and what tells its weights and arithmetic apart.

    Messages of errors do not: who wrote them did not mean them for a server.
    """
    return {
        name: value
        for name, value in result.items()
        if (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)) or name in _TEXTS
    }


def _of_pushes(pushes: Sequence[Pushed]) -> dict[str, float]:
    """Means over pushes: the loss by samples, staleness over the shards that told it; replicas as of the last."""
    samples = sum(push.samples for push in pushes)
    known = [value for push in pushes for value in push.staleness if value >= 0]
    took = sum(push.took for push in pushes)
    return {
        **({"push/loss": sum(push.loss * push.samples for push in pushes) / samples} if samples else {}),
        **({"push/staleness": sum(known) / len(known)} if known else {}),
        **({"push/stalled": sum(push.stalled for push in pushes) / took} if took > 0 else {}),
        "push/replicas": pushes[-1].alive,
    }


def _of_epoch(record: EpochEnded) -> dict[str, float]:
    splits = {"train": record.train, "val": record.val, "test": record.test}
    return {
        **{f"{split}/{name}": value for split, values in splits.items() for name, value in values.items()},
        **_rate("lr", record.lr),
        "speed/samples_per_second": record.samples_per_second,
        "speed/evaluation_seconds": record.evaluation,
        **{f"speed/{name}_seconds": seconds for name, seconds in record.spent.items()},
    }


def _rate(name: str, lr: float) -> dict[str, float]:
    """Nothing where the rate is not known."""
    return {} if math.isnan(lr) else {name: lr}
