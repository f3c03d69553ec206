"""How a run ended: a value with its numbers and a sentence of advice."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from squall.errors import DivergedError, SquallError
from squall.run.leaving import words

Outcome = Literal["finished", "stopped", "diverged", "failed"]


@dataclass(frozen=True)
class Result:
    """What a run gives back.

    Attributes:
        outcome: finished (all epochs), stopped (left early by the loop, or by Ctrl-C), diverged, failed (by an error).
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


def cause(error: BaseException | None) -> tuple[Outcome, str, str]:
    """How a run ended that came to no result: outcome, headline of the error, advice.

    Arguments:
        error: what ended it; None: it was closed, or the process ended, without `finish`.
    """
    if (said := words(error)) is not None:
        return "stopped", *said
    if isinstance(error, SquallError):
        to_do = [text for label, text in error.rows if label in ("to do", "to try", "try alone")]
        outcome: Outcome = "diverged" if isinstance(error, DivergedError) else "failed"
        return outcome, error.headline, next(iter(to_do), error.hint)
    if isinstance(error, KeyboardInterrupt):
        return "stopped", "stopped by Ctrl-C", ""
    if error is None or (isinstance(error, SystemExit) and not error.code):
        return "stopped", "run.finish() was not called", "call run.finish() after the loop: it writes the weights"
    return "failed", f"{type(error).__name__}: {error}".partition("\n")[0].removesuffix(": "), ""


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
