"""How a run ended: a value with its numbers and a sentence of advice."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["finished", "stopped", "diverged"]


@dataclass(frozen=True)
class Result:
    """What a run gives back.

    Attributes:
        outcome: finished (all epochs), stopped (left early by the loop), diverged.
        advice: what to do next, in a sentence.
        folder: the run folder, None if none was asked for.
        values: what result.json holds.
        train, val, test: the last epoch's averages by name ("loss", "accuracy", ...); empty where there is no such set.
    """

    outcome: Outcome
    advice: str
    folder: Path | None
    values: Mapping[str, Any]
    train: Mapping[str, float] = field(default_factory=dict)
    val: Mapping[str, float] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)


def median_of_last(errors: Sequence[float], most: int = 5) -> float:
    """The median error of the last five epochs: the number Goyal et al. 2017 report (section 5.1, check G9)."""
    return statistics.median(errors[-most:])


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1 in the denominator) over seeds.

    Raises:
        ValueError: fewer than three values: a spread of two says nothing.
    """
    if len(values) < 3:
        raise ValueError(f"{len(values)} runs: mean and std need three or more")
    return statistics.fmean(values), statistics.stdev(values)
