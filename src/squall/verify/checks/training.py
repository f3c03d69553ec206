"""Everything that is known of a training when the checks begin: its runs, and what they share."""

from __future__ import annotations

import linecache
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from squall.verify.finding import Place
from squall.verify.trace import Event, Run
from squall.verify.update import Update, updates


@dataclass(frozen=True)
class Training:
    """A training as it was observed.

    Attributes:
        runs: with different numbers of processes, in the order asked for.
        again: one more run with the first number.
        script: the path of the script.
    """

    runs: Sequence[Run]
    again: Run | None = None
    script: str = ""
    _cache: dict[int, list[Update]] = field(default_factory=dict, repr=False, compare=False)

    def updates(self, run: Run) -> list[Update]:
        """The updates of a run that all its ranks made."""
        if id(run) not in self._cache:
            self._cache[id(run)] = updates(run)
        return self._cache[id(run)]

    @cached_property
    def all_updates(self) -> list[Update]:
        """Those of all runs."""
        return [update for run in self.runs for update in self.updates(run)]

    @cached_property
    def several(self) -> list[Run]:
        """The runs with more than one process."""
        return [run for run in self.runs if run.processes > 1]

    @cached_property
    def varied(self) -> bool:
        """Whether there are runs with different numbers of processes above one."""
        return len({run.processes for run in self.several}) > 1

    def place(self, event: Event | None) -> Place | None:
        """The line of the user's code at which an event was noted."""
        found = None if event is None else event.get("where")
        if not found:
            return None
        path, line = str(found[0]), int(found[1])
        text = linecache.getline(path, line).strip()
        return Place(path=shown(path), line=line, text=text)


def shown(path: str) -> str:
    """A path as short as it can be said from here."""
    try:
        relative = os.path.relpath(path)
    except ValueError:
        return path
    return relative if not relative.startswith("..") else os.path.normpath(path)


def numbers(values: Sequence[object]) -> str:
    """ "2", "2 and 4", "2, 3 and 4"."""
    texts = [str(one) for one in values]
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def count(number: int, thing: str) -> str:
    """ "1 sample", "1,437 samples"."""
    ending = "es" if thing.endswith(("s", "ch")) else "s"
    return f"{number:,} {thing}{'' if number == 1 else ending}"


def times(factor: float) -> str:
    """ "x 4", "/ 2", "x 0.37"."""
    if abs(factor) >= 1 or factor == 0:
        return f"x {factor:.4g}"
    inverse = 1 / factor
    return f"/ {inverse:.4g}" if abs(inverse - round(inverse)) < 1e-3 * abs(inverse) else f"x {factor:.4g}"


def digits(value: float) -> int:
    """How many digits a number needs, as a person would write it: 0.1 -> 1, 0.0041667 -> many."""
    for amount in range(1, 8):
        if float(f"{value:.{amount - 1}e}") == 0 or abs(float(f"{value:.{amount - 1}e}") - value) <= 2e-6 * abs(value):
            return amount
    return 8


def rounder(one: float, other: float) -> bool:
    """Whether a person would sooner have written the first of two numbers than the second."""
    first, second = digits(one), digits(other)
    if first != second:
        return first < second
    return _mantissa(one) == 1 and _mantissa(other) != 1


def _mantissa(value: float) -> float:
    return float(f"{value:.6e}".partition("e")[0])
