"""A line chart as SVG text, for figures in the docs: no library draws one without a browser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 520, 340, 62, 16, 34, 84
COLOURS = ("#1f6fb4", "#c2501e", "#3a8a3f", "#7a4fa3")


@dataclass(frozen=True)
class Line:
    """Points joined by a line; a point without a y is left out, with it what joins it."""

    name: str
    points: Sequence[tuple[float, float | None]]
    colour: str
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """The marks of an axis, in order; logarithmic ones are placed by their logarithm."""

    title: str
    marks: Sequence[float]
    logarithmic: bool = False

    def at(self, value: float, start: float, stop: float) -> float:
        """Where a value lies between two ends."""
        first, last, value = (self._scaled(x) for x in (self.marks[0], self.marks[-1], value))
        return start + (value - first) / (last - first) * (stop - start)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value


def chart(title: str, x: Axis, y: Axis, lines: Sequence[Line]) -> str:
    """One chart, WIDTH x HEIGHT."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    out = [f'<text x="{LEFT}" y="20" font-weight="bold">{escape(title)}</text>']
    for mark in y.marks:
        at = y.at(mark, bottom, TOP)
        out.append(f'<line x1="{LEFT}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}" stroke="#8884" />')
        out.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{mark:g}</text>')
    for mark in x.marks:
        at = x.at(mark, LEFT, right)
        out.append(f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{mark:g}</text>')
    out.append(f'<text x="{(LEFT + right) / 2}" y="{bottom + 32}" text-anchor="middle">{escape(x.title)}</text>')
    middle = (TOP + bottom) / 2
    turned = f'transform="rotate(-90 14 {middle})"'
    out.append(f'<text x="14" y="{middle}" text-anchor="middle" {turned}>{escape(y.title)}</text>')
    for number, line in enumerate(lines):
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        for run in _runs(line.points):
            places = [(x.at(a, LEFT, right), y.at(b, bottom, TOP)) for a, b in run]
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
            out.append(f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="2"{dash} />')
            out += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{line.colour}" />' for a, b in places]
        left, low = LEFT + number % 2 * (right - LEFT) / 2, HEIGHT - 30 + number // 2 * 18
        out.append(
            f'<line x1="{left:.0f}" y1="{low}" x2="{left + 22:.0f}" y2="{low}" stroke="{line.colour}"'
            f' stroke-width="2"{dash} /><text x="{left + 27:.0f}" y="{low + 4}">{escape(line.name)}</text>'
        )
    return "\n".join(out)


def page(charts: Sequence[str]) -> str:
    """Charts one below the other, readable on light and dark pages."""
    parts = [f'<g transform="translate(0 {HEIGHT * number})">\n{part}\n</g>' for number, part in enumerate(charts)]
    size = f'width="{WIDTH}" height="{HEIGHT * len(charts)}" viewBox="0 0 {WIDTH} {HEIGHT * len(charts)}"'
    style = 'font-family="sans-serif" font-size="12" fill="#222"'
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n'
        f'<rect width="100%" height="100%" fill="#ffffff" />\n{body}\n</svg>\n'
    )


def _runs(points: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    found: list[list[tuple[float, float]]] = [[]]
    for a, b in points:
        if b is None:
            found.append([])
        else:
            found[-1].append((a, b))
    return [run for run in found if run]
