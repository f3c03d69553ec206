"""Squall's own version, known without loading torch."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def own_version() -> str:
    """The installed distribution's version; "unknown" where there is none (a bare checkout)."""
    try:
        return version("squall-train")
    except PackageNotFoundError:
        return "unknown"
