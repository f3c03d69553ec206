"""Numbers and times as a person reads them, and texts of files made safe for a page.

Whatever comes from a file (a name, an error, a recipe) may hold markup. `Html` marks what was written here; everything
else is escaped where it is put into the page. Plotly reads tags in its labels too: `plain` is for those.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape

from squall import units

NONE = "–"
"""Stands where there is no value."""


class Html(str):
    """Markup that is safe as it is."""

    __slots__ = ()


def safe(text: object) -> Html:
    """Any text as markup that shows it letter by letter."""
    return text if isinstance(text, Html) else Html(escape(str(text), quote=True))


def join(parts: Sequence[object], between: str = " ") -> Html:
    """Texts and markup one after the other."""
    return Html(between.join(safe(part) for part in parts))


def plain(text: object, most: int = 48) -> str:
    """A text for a label in a plot: shortened in its middle, tags taken for letters."""
    line = " ".join(str(text).split())
    if len(line) > most:
        line = f"{line[: most // 2 - 1]}…{line[-(most // 2) :]}"
    return escape(line, quote=False)


def written(value: float, digits: int = 4) -> str:
    """A number with a few digits: 0.33276, 2.3019, 1,234,567, 4.76e-05."""
    if not math.isfinite(value):
        return NONE if math.isnan(value) else str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.{digits}g}"
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e9 else f"{value:.{digits - 1}e}"


def shares(fraction: float) -> str:
    """A share as a percentage, or a dash."""
    return units.percent(fraction) if math.isfinite(fraction) else NONE


def duration(seconds: float) -> str:
    """As `units.duration`, also milliseconds: 12 ms, 4.6 s, 3 min 20 s; a dash where nobody knows."""
    if not math.isfinite(seconds):
        return NONE
    if abs(seconds) < 0.9995:
        return "0 s" if seconds == 0 else f"{1000 * seconds:.3g} ms"
    return units.duration(seconds)


def bytes_of(number: float) -> str:
    """A size: 512 B, 78 kB, 102.2 MB, 1.6 GB."""
    if not math.isfinite(number):
        return NONE
    if number < 1e3:
        return f"{number:.0f} B"
    return f"{number / 1e3:.0f} kB" if number < 1e6 else units.megabytes(number)


def when(time: float) -> str:
    """A time of day, seconds since 1970, on the clock of this machine: 2026-11-21 11:48:03."""
    try:
        return datetime.fromtimestamp(time, UTC).astimezone().strftime("%Y-%m-%d\u00a0%H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return NONE


def shortly(digest: object, digits: int = 12) -> str:
    """The beginning of a hash."""
    text = str(digest)
    return text if len(text) <= digits else f"{text[:digits]}…"


def plural(number: int, word: str, many: str = "") -> str:
    """ "1 run", "1,437 runs"."""
    return f"{units.count(number)} {word if number == 1 else many or word + 's'}"
