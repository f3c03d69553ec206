"""Durations, counts and sizes with their units, read and printed in one place.

A recipe says ``"1ep"``, ``"500step"``, ``"120ms"`` or ``"10Gbit"``; the code below it counts steps, seconds or bytes a
second.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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

_MEASURE = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([a-zA-Z]+)\s*")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0}
_BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
_BYTES |= {"kbit": 1e3 / 8, "Mbit": 1e6 / 8, "Gbit": 1e9 / 8, "Tbit": 1e12 / 8}


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


def to_seconds(text: str) -> float:
    """Seconds of a time: ``"120ms"``, ``"0.2ms"``, ``"40s"``, ``"10min"``; raises ValueError with the valid forms."""
    return _measure(text, _SECONDS, 'is no time. Write a number and its unit: "120ms", "40s", "10min"')


def to_bytes_per_second(text: str) -> float:
    """Bytes a second of a rate: ``"10Gbit"``, ``"1.25GB"``; raises ValueError with the valid forms."""
    rule = 'is no rate of bytes. Write bits or bytes a second: "10Gbit", "1.25GB", "500MB"'
    return _measure(text, _BYTES, rule)


def _measure(text: str, units: Mapping[str, float], rule: str) -> float:
    match = _MEASURE.fullmatch(text)
    if not match or match[2] not in units:
        raise ValueError(f"{text!r} {rule}")
    return float(match[1]) * units[match[2]]


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
