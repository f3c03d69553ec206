"""Values of records, whatever they are: JSON that another version wrote, or a person changed, must not stop a page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_MOST = 2**53


def number(value: Any) -> float:
    """A number of a record: "nan" and "inf" come as strings; what is none is nan."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def whole(value: Any, default: int = 0) -> int:
    """A count of a record; the default where it is none, or none that a run can have."""
    found = number(value)
    return int(found) if abs(found) < _MOST else default


def mapping(value: Any) -> Mapping[str, Any]:
    """A table of a record; empty where it is none."""
    return value if isinstance(value, Mapping) else {}


def listed(value: Any) -> list[Any]:
    """A list of a record; empty where it is none."""
    return value if isinstance(value, list) else []
