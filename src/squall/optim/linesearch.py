"""How far to go along a direction: a search is a generator that yields steps and is sent what the function is there.

It knows numbers only: step, value and slope. Whoever drives it evaluates, here or on a thousand machines::

    search = strong_wolfe(Point(0.0, value, slope), first=1.0, spec)
    step = next(search)
    while True:
        step = search.send(Point(step, value_at(step), slope_at(step)))      StopIteration.value: the end

Sufficient decrease (Armijo):  f(t) <= f(0) + c1 t f'(0)        strong Wolfe: and |f'(t)| <= c2 |f'(0)|

Near an optimum the differences of f are smaller than what rounding does to it, and no step would do. So sufficient
decrease has a tolerance, `noise` * |f(0)|: a value that is not lower is forgiven by so much, where the slope has become
flatter. And a search that finds no step of the strong kind settles for the best one of the weak. A step at which the
function is not finite is too long.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

_LOOSE, _TIGHT = 4.0, 1.1
"""Without a bracket the next step is within so many of the last difference beyond the last step."""

_SHRINK = 0.66
"""Of its width a bracket must lose in two trials; else it is halved."""

_WITHIN = 0.66
"""Of the way to a bracket's far end that an extrapolating step may go."""


@dataclass(frozen=True)
class Point:
    """A step along the direction, the value there, and its derivative along the direction."""

    step: float
    value: float
    slope: float

    @property
    def finite(self) -> bool:
        """Whether value and slope are numbers."""
        return math.isfinite(self.value) and math.isfinite(self.slope)


@dataclass(frozen=True)
class Found:
    """How a search ended.

    Attributes:
        point: the accepted one; None: no step decreases the function.
        why: "wolfe", "armijo", or what stood in the way.
    """

    point: Point | None
    why: str


@dataclass(frozen=True, kw_only=True)
class SearchSpec:
    """Numbers of a line search.

    Attributes:
        c1: of sufficient decrease.
        c2: of the strong Wolfe condition on the slope.
        noise: relative error of a value.
        most_trials: evaluations of one search.
        width: a bracket that is relatively narrower has nothing more to give.
        longest: step.
    """

    c1: float = 1e-3
    c2: float = 0.9
    noise: float = 0.0
    most_trials: int = 20
    width: float = 0.1
    longest: float = 1e20


Search = Generator[float, Point, Found]


def armijo(start: Point, first: float, spec: SearchSpec) -> Search:
    """Back-tracking: the first of ever shorter steps that decreases the function sufficiently.

    The next step is the minimum of the parabola through start (value and slope) and the last trial, kept between a
    tenth and a half of the last step (Nocedal & Wright 2006, section 3.5).
    """
    step = first
    for _ in range(spec.most_trials):
        point = yield step
        if point.finite and _decreases(start, point, spec):
            return Found(point, "armijo")
        if not point.finite:
            step *= 0.1
            continue
        best = _parabola(start, point)
        step = min(max(best, 0.1 * step), 0.5 * step)
    return Found(None, f"no decrease in {spec.most_trials} trials")


def strong_wolfe(start: Point, first: float, spec: SearchSpec) -> Search:
    """A bracket that closes on a step with both conditions, by safeguarded interpolation.

    Moré & Thuente 1994 (ACM Transactions on Mathematical Software 20, 286). As long as no step has decreased the
    function sufficiently with a slope that is not negative, the bracket is moved by the auxiliary function
    f(t) - f(0) - c1 t f'(0), whose minima are such steps.
    """
    line, longest = spec.c1 * start.slope, spec.longest
    bracket = _Bracket(start, start, 0.0, first + _LOOSE * first)
    best: Point | None = None
    auxiliary = True
    step = min(first, longest)
    for _ in range(spec.most_trials):
        point = yield step
        if not point.finite:
            longest = step
            step = bracket.low.step + 0.1 * (step - bracket.low.step)
            continue
        decreases = _decreases(start, point, spec)
        if decreases and abs(point.slope) <= -spec.c2 * start.slope:
            return Found(point, "wolfe")
        if decreases and (best is None or point.value < best.value):
            best = point
        if bracket.spent(step, spec.width):
            return _settled(best, "the bracket is as narrow as rounding allows")
        if step == longest and decreases and point.slope <= line:
            return Found(point, "armijo")
        auxiliary = auxiliary and not (decreases and point.slope >= 0)
        tilt = line if auxiliary and point.value <= bracket.low.value and not decreases else 0.0
        step = min(max(bracket.narrow(point, tilt), 0.0), longest)
        if bracket.spent(step, spec.width):
            step = bracket.low.step  # once more, at the best step there is
    return _settled(best, f"no such step in {spec.most_trials} trials")


SEARCHES: dict[str, Callable[[Point, float, SearchSpec], Search]] = {"strong_wolfe": strong_wolfe, "armijo": armijo}


class _Bracket:
    """Where the step is looked for: between the best point and another, once there is another; beyond it until then.

    Attributes:
        low: the point of the least value.
        high: the other end.
        least, most: steps between which the next one lies.
    """

    def __init__(self, low: Point, high: Point, least: float, most: float) -> None:
        self.low, self.high, self.least, self.most = low, high, least, most
        self._closed = False
        self._widths = math.inf, math.inf  # two trials ago, one trial ago

    def spent(self, step: float, width: float) -> bool:
        """Whether nothing is left between its ends."""
        if not self._closed:
            return False
        return not self.least < step < self.most or self.most - self.least <= width * self.most

    def narrow(self, point: Point, tilt: float) -> float:
        """Takes a trial in, and gives the next step.

        Arguments:
            tilt: slope of the line that is taken off the function.
        """
        low, high, new = (_tilted(each, tilt) for each in (self.low, self.high, point))
        step = self._interpolated(low, high, new)
        if new.value > low.value:
            self.high = point
        else:
            if new.slope * low.slope < 0:
                self.high = self.low
            self.low = point
        if not self._closed:
            self.least = step + _TIGHT * (step - self.low.step)
            self.most = step + _LOOSE * (step - self.low.step)
            return step
        if abs(self.high.step - self.low.step) >= _SHRINK * self._widths[0]:
            step = self.low.step + 0.5 * (self.high.step - self.low.step)
        self._widths = self._widths[1], abs(self.high.step - self.low.step)
        self.least, self.most = sorted((self.low.step, self.high.step))
        return step

    def _interpolated(self, low: Point, high: Point, new: Point) -> float:
        """The next step, by the four cases of section 4; closes the bracket where a minimum lies in it."""
        if new.value > low.value:  # 1: higher
            self._closed = True
            cubic, parabola = _cubic(low, new), _parabola(low, new)
            is_near = abs(cubic - low.step) < abs(parabola - low.step)
            return cubic if is_near else cubic + 0.5 * (parabola - cubic)
        if new.slope * low.slope < 0:  # 2: lower, with a slope of the other sign
            self._closed = True
            return _farther(new.step, _cubic(low, new), _secant(low, new))
        limit = self.most if new.step > low.step else self.least
        if abs(new.slope) < abs(low.slope):  # 3: lower, and less steep
            cubic, secant = _cubic(low, new, beyond=limit), _secant(low, new)
            if not self._closed:
                return min(max(_farther(new.step, cubic, secant), self.least), self.most)
            near = cubic if abs(cubic - new.step) < abs(secant - new.step) else secant
            border = new.step + _WITHIN * (high.step - new.step)
            return min(border, near) if new.step > low.step else max(border, near)
        return _cubic(high, new) if self._closed else limit  # 4: lower, and as steep as before


def _decreases(start: Point, point: Point, spec: SearchSpec) -> bool:
    within = point.value <= start.value + spec.c1 * point.step * start.slope + spec.noise * abs(start.value)
    return within and (point.value < start.value or abs(point.slope) <= spec.c2 * abs(start.slope))


def _settled(best: Point | None, why: str) -> Found:
    return Found(best, "armijo" if best is not None else why)


def _tilted(point: Point, tilt: float) -> Point:
    return replace(point, value=point.value - tilt * point.step, slope=point.slope - tilt) if tilt else point


def _farther(step: float, one: float, other: float) -> float:
    return one if abs(one - step) > abs(other - step) else other


def _cubic(a: Point, b: Point, beyond: float | None = None) -> float:
    """The minimum of the cubic through two points, values and slopes.

    Arguments:
        beyond: the answer where there is none on b's far side; None: there must be one.
    """
    theta = 3.0 * (a.value - b.value) / (b.step - a.step) + a.slope + b.slope
    scale = max(abs(theta), abs(a.slope), abs(b.slope))
    root = scale * math.sqrt(max((theta / scale) ** 2 - (a.slope / scale) * (b.slope / scale), 0.0))
    gamma = -root if b.step > a.step else root
    # of the way from b to a
    share = (gamma - b.slope + theta) / (2.0 * gamma - b.slope + a.slope)
    if beyond is not None and not (share < 0.0 and gamma != 0.0):
        return beyond
    return b.step + share * (a.step - b.step)


def _parabola(a: Point, b: Point) -> float:
    """The minimum of the parabola through a, its slope, and b."""
    steepness = (a.value - b.value) / (b.step - a.step) + a.slope
    return a.step + a.slope / steepness / 2.0 * (b.step - a.step)


def _secant(a: Point, b: Point) -> float:
    """Where the slope is zero, by a line through two slopes."""
    return b.step + b.slope / (b.slope - a.slope) * (a.step - b.step)
