"""When to save and what to keep: what a recipe's [checkpoint] table or `squall.Run(checkpoint=...)` says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from squall.errors import Mistakes, nearest
from squall.units import Duration

NEVER = "never"
_LESS_IS_BETTER = ("loss", "error", "perplexity")


@dataclass(frozen=True, kw_only=True)
class CheckpointSpec:
    """When a run saves its state, and which of the checkpoints stay.

    Attributes:
        every: "1ep", "500step" or "10min"; "never": only when the run is asked to stop.
        keep: the newest so many stay on disk.
        keep_best: a metric of the validation set, "val/accuracy": the checkpoint with the best one stays too. Smaller
            is better for names that hold loss, error or perplexity; "min:val/cost" and "max:val/score" say it.
    """

    every: str = "1ep"
    keep: int = 2
    keep_best: str | None = None

    @staticmethod
    def of(given: CheckpointSpec | Mapping[str, Any] | str) -> CheckpointSpec:
        """From its fields, or from `every` alone.

        Raises:
            InputError: with all mistakes at once.
        """
        if isinstance(given, CheckpointSpec):
            return given
        values = {"every": given} if isinstance(given, str) else dict(given)
        mistakes = Mistakes("checkpoint")
        names = [field.name for field in fields(CheckpointSpec)]
        for key in [key for key in values if key not in names]:
            near = nearest(key, names)
            mistakes.add(f"{key}={values.pop(key)!r}", f"no such field. Near: {', '.join(near or names)}")
        for found, rule in checked(values):
            mistakes.add(found, rule)
        mistakes.raise_if_any()
        return CheckpointSpec(**values)

    @property
    def duration(self) -> Duration:
        """`every` as a number with its unit."""
        return Duration(math.inf, "second") if self.every == NEVER else Duration.parse(self.every)

    @property
    def best(self) -> tuple[str, bool] | None:
        """The validation metric that decides, and whether less of it is better."""
        if self.keep_best is None:
            return None
        word, _, name = self.keep_best.rpartition(":")
        metric = name.removeprefix("val/")
        less = word == "min" if word else any(part in metric for part in _LESS_IS_BETTER)
        return metric, less

    def is_due(self, index: int, before: float, after: float) -> bool:
        """Whether steps or epochs call for a checkpoint after a step; seconds are counted elsewhere.

        Arguments:
            index: of the step.
            before, after: epochs done before and after it.
        """
        duration = self.duration
        if duration.unit == "step":
            return (index + 1) % int(duration.amount) == 0
        if duration.unit == "epoch":
            return int((after + 1e-9) / duration.amount) > int((before + 1e-9) / duration.amount)
        return False


def checked(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The mistakes in fields of a spec."""
    found = []
    every, keep, best = values.get("every", "1ep"), values.get("keep", 1), values.get("keep_best")
    try:
        duration = Duration.parse("1ep" if every == NEVER else every) if isinstance(every, str) else None
    except ValueError as error:
        found.append((f"every={every!r}", str(error).partition(". ")[2]))
    else:
        if duration is None:
            found.append((f"every={every!r}", 'a text: "1ep", "500step" or "10min"'))
        elif duration.amount <= 0 or (duration.unit == "step" and duration.amount != int(duration.amount)):
            found.append((f"every={every!r}", "must be above 0, and steps are whole"))
    if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
        found.append((f"keep={keep!r}", "must be a whole number of at least 1: the newest is what a run goes on from"))
    if best is not None:
        name = best.removeprefix("min:").removeprefix("max:") if isinstance(best, str) else ""
        if name.startswith("test/"):
            found.append((f"keep_best={best!r}", "the test set never chooses: it would no longer measure. val/..."))
        elif not name.startswith("val/") or name == "val/":
            found.append((f"keep_best={best!r}", 'a metric of the validation set: "val/accuracy"'))
    return found
