"""Line searches as generators: what they accept is what they promise, whatever the function does."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from squall.optim.linesearch import SEARCHES, Found, Point, SearchSpec, armijo, strong_wolfe

Function = Callable[[float], tuple[float, float]]


def searched(search: str, function: Function, first: float, spec: SearchSpec) -> tuple[Found, list[float]]:
    """Drives a search; the steps that it tried too."""
    start = Point(0.0, *function(0.0))
    steps = SEARCHES[search](start, first, spec)
    step, tried = next(steps), []
    while True:
        tried.append(step)
        try:
            step = steps.send(Point(step, *function(step)))
        except StopIteration as end:
            return end.value, tried


@dataclass
class Hard:
    """Moré & Thuente 1994, section 5: the functions on which they tested theirs."""

    name: str
    function: Function
    c1: float
    c2: float


def first(t: float, beta: float = 2.0) -> tuple[float, float]:
    return -t / (t**2 + beta), (t**2 - beta) / (t**2 + beta) ** 2


def second(t: float, beta: float = 0.004) -> tuple[float, float]:
    return (t + beta) ** 5 - 2 * (t + beta) ** 4, 5 * (t + beta) ** 4 - 8 * (t + beta) ** 3


def third(t: float, beta: float = 0.01, length: float = 39.0) -> tuple[float, float]:
    wave = 2 * (1 - beta) / (length * math.pi) * math.sin(length * math.pi / 2 * t)
    slope = (1 - beta) * math.cos(length * math.pi / 2 * t)
    if t <= 1 - beta:
        return 1 - t + wave, -1 + slope
    if t >= 1 + beta:
        return t - 1 + wave, 1 + slope
    return (t - 1) ** 2 / (2 * beta) + beta / 2 + wave, (t - 1) / beta + slope


def yanai(b1: float, b2: float) -> Function:
    def gamma(b: float) -> float:
        return math.sqrt(1 + b**2) - b

    def function(t: float) -> tuple[float, float]:
        one, two = math.sqrt((1 - t) ** 2 + b2**2), math.sqrt(t**2 + b1**2)
        return gamma(b1) * one + gamma(b2) * two, gamma(b1) * (t - 1) / one + gamma(b2) * t / two

    return function


HARD = [
    Hard("rational", first, 0.001, 0.1),
    Hard("polynomial", second, 0.1, 0.1),
    Hard("oscillating", third, 0.1, 0.1),
    Hard("yanai: both steep", yanai(0.001, 0.001), 0.001, 0.001),
    Hard("yanai: steep at the left", yanai(0.01, 0.001), 0.001, 0.001),
    Hard("yanai: steep at the right", yanai(0.001, 0.01), 0.001, 0.001),
]


@pytest.mark.parametrize("hard", HARD, ids=lambda hard: hard.name)
@pytest.mark.parametrize("begin", [1e-3, 1e-1, 1e1, 1e3])
def test_the_functions_of_the_paper_are_searched_from_any_first_step(hard: Hard, begin: float) -> None:
    spec = SearchSpec(c1=hard.c1, c2=hard.c2, most_trials=30, width=1e-12)
    found, tried = searched("strong_wolfe", hard.function, begin, spec)
    value, slope = hard.function(0.0)
    assert found.why == "wolfe"
    assert found.point is not None
    assert found.point.value <= value + hard.c1 * found.point.step * slope
    assert abs(found.point.slope) <= hard.c2 * abs(slope)
    assert len(tried) <= 17  # the most that the paper's tables show is 16


def bowl(t: float) -> tuple[float, float]:
    return (t - 1.0) ** 2, 2 * (t - 1.0)


@pytest.mark.parametrize("search", list(SEARCHES))
def test_the_first_step_is_taken_where_it_is_good(search: str) -> None:
    found, tried = searched(search, bowl, 1.0, SearchSpec())
    assert tried == [1.0]
    assert found.point == Point(1.0, 0.0, 0.0)


def test_back_tracking_takes_the_minimum_of_the_parabola() -> None:
    found, tried = searched("armijo", bowl, 4.0, SearchSpec())
    assert tried == [4.0, 1.0]
    assert found.point == Point(1.0, 0.0, 0.0)


@pytest.mark.parametrize("search", list(SEARCHES))
def test_a_step_where_the_function_is_not_finite_is_too_long(search: str) -> None:
    def walled(t: float) -> tuple[float, float]:
        return (-math.log(1.5 - t) - t, 1 / (1.5 - t) - 1) if t < 1.5 else (math.inf, math.nan)

    found, tried = searched(search, walled, 40.0, SearchSpec())
    assert found.point is not None
    assert found.point.step < 1.5
    assert found.point.value < walled(0.0)[0]
    assert max(tried) == 40.0


@pytest.mark.parametrize("search", list(SEARCHES))
def test_where_nothing_decreases_the_function_there_is_no_step(search: str) -> None:
    """A gradient with the wrong sign: the slope promises what the function does not keep."""
    found, tried = searched(search, lambda t: (t, -1.0), 1.0, SearchSpec(most_trials=12))
    assert found.point is None
    assert found.why
    assert len(tried) <= 12


@pytest.mark.parametrize("search", list(SEARCHES))
def test_rounding_near_an_optimum_is_forgiven_as_far_as_told(search: str) -> None:
    """The decrease is real and smaller than one unit of rounding, so that the value seems to rise."""

    def noisy(t: float) -> tuple[float, float]:
        return 1.0 + (3e-16 if t else 0.0), 2e-16 * (t - 1.0)

    strict, _ = searched(search, noisy, 1.0, SearchSpec(most_trials=12))
    forgiving, tried = searched(search, noisy, 1.0, SearchSpec(noise=1e-15, most_trials=12))
    assert strict.point is None
    assert forgiving.point is not None
    assert tried == [1.0]


def test_a_strong_search_that_finds_no_such_step_settles_for_a_decrease() -> None:
    """The slope never gets flat: the function is a straight line down to a kink."""

    def kinked(t: float) -> tuple[float, float]:
        return abs(t - 1.0), math.copysign(1.0, t - 1.0)

    found, _ = searched("strong_wolfe", kinked, 0.7, SearchSpec(c2=0.1))
    assert found.why == "armijo"
    assert found.point is not None
    assert found.point.value < 1.0


def test_a_search_does_not_go_on_for_ever() -> None:
    """A function without a minimum is left at the longest step, or when the trials are spent."""

    def falling(t: float) -> tuple[float, float]:
        return -t, -1.0

    found, tried = searched("strong_wolfe", falling, 1.0, SearchSpec(longest=50.0))
    assert found.point is not None
    assert found.point.step == 50.0
    found, tried = searched("strong_wolfe", falling, 1.0, SearchSpec(most_trials=6))
    assert found.point is not None
    assert len(tried) == 6


def test_both_searches_are_generators_of_steps() -> None:
    for search in (strong_wolfe, armijo):
        steps = search(Point(0.0, 1.0, -1.0), 0.25, SearchSpec())
        assert next(steps) == 0.25
        steps.close()
