"""Parts of a plot as plotly takes them: lines, bars, axes. Colours are names that the page knows (`blocks.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from squall.report.series import significant
from squall.report.words import plain

NUM_COLOURS = 8
DASHES = ("solid", "dash", "dot", "dashdot")
MARKERS = {"train": "circle", "val": "diamond", "test": "square"}
SPLIT_COLOURS = {"train": "$c1", "val": "$c3", "test": "$c2"}
PART_COLOURS = {
    "data": "$c5",
    "compute": "$c1",
    "communication": "$c4",
    "wait": "$c2",
    "save": "$c3",
    "evaluation": "$c8",
}
FEW_POINTS = 40
"""So many points are drawn with markers: each can be told from its neighbours."""


def line(
    name: str, x: Sequence[float], y: Sequence[float], colour: str, *, width: float = 2, form: str = ".4~g", **more: Any
) -> dict[str, Any]:
    """A line through points; values that are not finite leave a gap."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": plain(name),
        "x": [significant(value, 8) for value in x],
        "y": [significant(value) for value in y],
        "line": {"color": colour, "width": width},
        "hovertemplate": f"%{{y:{form}}}",
        **more,
    }


def dotted(
    name: str, x: Sequence[float], y: Sequence[float], colour: str, symbol: str = "circle", **more: Any
) -> dict[str, Any]:
    """A line with a marker at each point, as long as they are few."""
    mode = "lines+markers" if len(x) <= FEW_POINTS else "lines"
    marker = {"color": colour, "symbol": symbol, "size": 6}
    return line(name, x, y, colour, **{"mode": mode, "marker": marker, **more})


def bars(name: str, x: Sequence[float], y: Sequence[float], colour: str, **more: Any) -> dict[str, Any]:
    """Bars of one kind, to be stacked."""
    sides = {"x": [significant(value, 8) for value in x], "y": [significant(value) for value in y]}
    return {"type": "bar", "name": plain(name), **sides, "marker": {"color": colour}, **more}


def band(name: str, x: Sequence[float], low: Sequence[float], high: Sequence[float], colour: str) -> dict[str, Any]:
    """The area between two lines."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": plain(name),
        "x": [significant(value, 8) for value in (*x, *reversed(x))],
        "y": [significant(value) for value in (*high, *reversed(low))],
        "fill": "toself",
        "fillcolor": colour,
        "line": {"color": colour, "width": 0},
        "hoverinfo": "skip",
    }


def upright(x: float, colour: str = "$muted", text: str = "", dash: str = "dot") -> tuple[dict[str, Any], ...]:
    """A line through the whole height at x, and a word beside it: a shape, or a shape and an annotation."""
    shape = {
        "type": "line",
        "x0": x,
        "x1": x,
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "layer": "below",
        "line": {"color": colour, "width": 1, "dash": dash},
    }
    if not text:
        return (shape,)
    words = {"text": plain(text), "x": x, "y": 1, "yref": "paper", "yanchor": "top", "xanchor": "right"}
    return shape, {**words, "showarrow": False, "font": {"color": colour, "size": 11}}


def thousands(top: float) -> dict[str, Any]:
    """A y axis from zero to some thousands: 2,500 and, of great numbers, 25k."""
    return {"rangemode": "tozero", "tickformat": ",~s" if top >= 1e4 else ",~g"}


def figure(
    traces: Sequence[dict[str, Any]], x: str, *, shapes: Sequence[dict[str, Any]] = (), **layout: Any
) -> dict[str, Any]:
    """Traces over an axis called `x`; `layout` joins plotly's layout, its `xaxis` and `yaxis` those of the axes."""
    axes = {"xaxis": {"title": {"text": x}, **layout.pop("xaxis", {})}, "yaxis": layout.pop("yaxis", {})}
    return {"data": list(traces), "layout": {**axes, "shapes": list(shapes), **layout}}
