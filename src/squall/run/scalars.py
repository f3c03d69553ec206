"""A run's records as named numbers, the same in every tracker: losses, metrics, rate, speed, and where the time went.

Steps come in thousands a second at times and nobody looks at each: one a second is kept. A point stands at the index
of the last update before it. That is how steps and epochs count already; and it means that whatever a resumed run
writes again has an index of at least its first step, so that a tracker can tell it from what came before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from squall.records import EpochEnded, Logged, Record, Stepped

_STEP_S = 1.0
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

    def __call__(self, record: Record) -> Point | None:
        """The record's numbers; None where it has none, or where a step follows another within a second."""
        match record:
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
