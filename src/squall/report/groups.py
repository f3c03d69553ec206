"""Runs put together: those that differ in their seed only, and those that differ in their number of processes.

A recipe names no hardware, and the number of processes does not touch the weights; so runs of one recipe but for the
seed are one group of results whatever hosted them, and each seed counts once.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from squall.records import dotted
from squall.report.read import RunData
from squall.report.series import median
from squall.report.values import mapping

LEAST = 3
"""Runs that a mean and a standard deviation need: a spread of two says nothing."""

_OWN_LOOP = ("name", "global_batch_size", "worker_batch_size", "epochs", "num_samples", "num_parameters")
_NO_MATTER = ("seed", "name")


def recipe_of(run: RunData) -> dict[str, str]:
    """What fixed the training, seed included; of a loop of one's own, what its first record tells."""
    if run.recipe:
        return {key: str(value) for key, value in dotted(run.recipe).items() if key != "name"}
    return {key: str(run.started.get(key, "")) for key in (*_OWN_LOOP, "seed")}


def seed_of(run: RunData) -> str:
    """The seed, as a text."""
    seed = run.started.get("seed", run.recipe.get("seed"))
    return "" if seed is None else str(seed)


def differences(runs: Sequence[RunData]) -> dict[str, list[str]]:
    """The keys in which recipes differ, and each run's value; a key that a recipe lacks is empty."""
    recipes = [recipe_of(run) for run in runs]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    found = {key: [recipe.get(key, "") for recipe in recipes] for key in keys}
    return {key: values for key, values in found.items() if len(set(values)) > 1}


@dataclass(frozen=True)
class Group:
    """Runs of one recipe but for the seed.

    Attributes:
        label: what sets the group apart from the others.
        runs: all of them.
    """

    label: str
    runs: tuple[RunData, ...]

    @property
    def seeds(self) -> list[RunData]:
        """A run for each seed: the first that finished."""
        found: dict[str, RunData] = {}
        for run in self.runs:
            if run.state == "finished":
                found.setdefault(seed_of(run), run)
        return list(found.values())


def groups(runs: Sequence[RunData]) -> list[Group]:
    """Runs by their recipe without the seed, in order of their first."""
    found: dict[tuple[tuple[str, str], ...], list[RunData]] = {}
    for run in runs:
        key = tuple(sorted((name, text) for name, text in recipe_of(run).items() if name not in _NO_MATTER))
        found.setdefault((("", run.name if not run.recipe else ""), *key), []).append(run)
    several = list(found.values())
    apart = differences([group[0] for group in several])
    labels = []
    for at, group in enumerate(several):
        words = [f"{key}={values[at]}" for key, values in apart.items() if key != "seed"]
        labels.append(", ".join(words[:3]) if words and len(several) > 1 else group[0].name)
    return [Group(label, tuple(group)) for label, group in zip(labels, several, strict=True)]


def mean_and_std(values: Sequence[float]) -> tuple[float, float] | None:
    """Mean and sample standard deviation (n - 1) of three finite values or more; None of fewer."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < LEAST:
        return None
    return statistics.fmean(finite), statistics.stdev(finite)


def scaling(group: Group) -> list[tuple[int, float, float]]:
    """(processes P, samples a second, efficiency) where runs of a recipe differ in P.

    Efficiency is samples/s over those of the least P, times least P over P. Runs whose number of processes changed, and
    those without a speed, do not count; of several with one P the median does.
    """
    speeds: dict[int, list[float]] = {}
    for run in group.runs:
        if len(run.processes) == 1 and math.isfinite(run.speed):
            speeds.setdefault(run.processes[0], []).append(run.speed)
    if len(speeds) < 2:
        return []
    found = sorted((processes, median(values)) for processes, values in speeds.items())
    least, first = found[0]
    return [(p, speed, speed * least / (p * first) if first > 0 else math.nan) for p, speed in found]


def same_weights(runs: Sequence[RunData]) -> list[list[RunData]]:
    """Runs that ended with the same bits: those of one hash, where there are two or more."""
    found: dict[str, list[RunData]] = {}
    for run in runs:
        digest = run.result.get("weights_sha256")
        if digest:
            found.setdefault(str(digest), []).append(run)
    return [some for some in found.values() if len(some) > 1]


def split_used(runs: Sequence[RunData]) -> str:
    """The split by which runs are compared: test where any was measured on it, else validation; "" without accuracy."""
    for split in ("test", "val"):
        if any("accuracy" in mapping(epoch.get(split)) for run in runs for epoch in run.epochs):
            return split
    return ""
