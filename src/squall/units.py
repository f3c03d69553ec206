"""Durations, counts and sizes with their units, read and printed in one place.

A recipe says ``"1ep"``, ``"500step"`` or ``"10min"``; the code below it counts steps or seconds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Unit = Literal["epoch", "step", "second"]

_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ep|epochs?|steps?|s|sec|min|h)\s*")
_UNITS: dict[str, tuple[Unit, float]] = {
    "ep": ("epoch", 1),
    "epoch": ("epoch", 1),
    "epochs": ("epoch", 1),
    "step": ("step", 1),
    "steps": ("step", 1),
    "s": ("second", 1),
    "sec": ("second", 1),
    "min": ("second", 60),
    "h": ("second", 3600),
}


@dataclass(frozen=True)
class Duration:
    """An amount of training: epochs, steps or seconds."""

    amount: float
    unit: Unit

    @staticmethod
    def parse(text: str) -> Duration:
        """Reads ``"1ep"``, ``"500step"``, ``"10min"``; raises ValueError with the valid forms."""
        match = _DURATION.fullmatch(text)
        if not match:
            raise ValueError(f'{text!r} is no duration. Write epochs, steps or time: "1ep", "500step", "10min"')
        unit, factor = _UNITS[match[2]]
        return Duration(float(match[1]) * factor, unit)


def duration(seconds: float) -> str:
    """A finite number of seconds as a person says them: 4.6 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def count(number: int) -> str:
    """An integer with thousands separators: 1281167 -> 1,281,167."""
    return f"{number:,}"


def megabytes(num_bytes: float) -> str:
    """Bytes in decimal megabytes with a digit after the point below 1,000 MB: 102228128 -> 102.2 MB."""
    if num_bytes >= 1e9:
        return f"{num_bytes / 1e9:.1f} GB"
    return f"{num_bytes / 1e6:.1f} MB"


def percent(fraction: float) -> str:
    """A share as a percentage with two digits: 0.98056 -> 98.06 %."""
    return f"{100 * fraction:.2f} %"
