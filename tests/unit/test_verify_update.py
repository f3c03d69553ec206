"""An update put together from all ranks: the ratio to what they computed, and the law that its weight follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from squall.verify.checks.law import LAWS, law
from squall.verify.checks.mixing import scales
from squall.verify.checks.training import Training, count, digits, numbers, rounder, times
from squall.verify.trace import Rank, Run
from squall.verify.update import Update, close, match, updates

SIZES = (7, 64)  # elements of two parameters


def made_up(
    processes: int, plan: Sequence[tuple[int, int, float]], weight: Callable[..., float], *, ratio: float, sums: bool
) -> Run:
    """A run in which everything is known.

    Arguments:
        plan: for each update: batches, samples of a batch, loss scale.
        weight: with which the mean over a batch enters its rank's loss, of (processes, batches, samples, scale).
        ratio: what the reduction multiplies the sum over ranks by.
        sums: losses are sums over their samples.
    """
    made = numpy.random.default_rng(processes)
    gradients = [[made.standard_normal((processes, batches, size)) for size in SIZES] for batches, _, _ in plan]
    ranks = []
    for number in range(processes):
        events: list[dict[str, Any]] = []
        arrays: dict[str, Any] = {}

        def note(event: str, events: list[dict[str, Any]] = events, **fields: Any) -> int:
            events.append({"n": len(events), "event": event, **fields})
            return len(events) - 1

        order = note("pass", data=0, pass_=0, size=100, run=[], sizes=[], batches=0)
        for (batches, samples, scale), parts in zip(plan, gradients, strict=True):
            factor = weight(processes, batches, samples, scale)
            backwards = []
            for _ in range(batches):
                batch = note("batch", of=order, position=0, size=samples, data=0)
                if scale != 1.0:
                    note("scaler", what="scale", scale=scale)
                term = {"how": "sum" if sums else "mean", "units": samples, "constants": [], "penalty": False}
                term["factor"] = factor / samples if sums else factor
                backwards.append(note("backward", batch=batch, loss=1.0, terms=[term]))
            step = note("step", optimizer=0, **{"from": {str(index): backwards for index in range(len(SIZES))}})
            for index, part in enumerate(parts):
                arrays[f"{step}.local.{index}"] = factor * part[number].sum(0)
                arrays[f"{step}.grad.{index}"] = ratio * factor * part.sum((0, 1))
        ranks.append(Rank(number, {"parameters": []}, events, arrays, numpy.zeros((0, 8), dtype=numpy.int64)))
    return Run(processes, ranks)


PLAN = ((2, 8, 256.0), (4, 5, 256.0), (2, 5, 512.0), (1, 8, 512.0))


def trained(weight: Callable[..., float], *, sums: bool = False, **more: Any) -> list[Update]:
    runs = [
        made_up(processes, more.get("plan", PLAN), weight, ratio=more.get("ratio", 1 / processes), sums=sums)
        for processes in more.get("processes", (2, 3))
    ]
    return Training(runs).all_updates


WEIGHTS: dict[str, Callable[[int, int, int, float], float]] = {
    "1": lambda p, m, b, s: 1.0,
    "the number of processes": lambda p, m, b, s: p,
    "1 / the number of processes": lambda p, m, b, s: 1 / p,
    "the number of batches of an update": lambda p, m, b, s: m,
    "1 / the number of batches of an update": lambda p, m, b, s: 1 / m,
    "the loss scale": lambda p, m, b, s: s,
    "1 / the loss scale": lambda p, m, b, s: 1 / s,
    "the samples of a rank's batches": lambda p, m, b, s: m * b,
    "the samples of all batches": lambda p, m, b, s: p * m * b,
    "the square of the number of processes": lambda p, m, b, s: p**2,
    "1 / the square of the number of processes": lambda p, m, b, s: 1 / p**2,
}


def test_every_law_is_tried() -> None:
    assert {one.name for one in LAWS} == set(WEIGHTS)


@pytest.mark.parametrize("sums", [False, True])
@pytest.mark.parametrize("name", WEIGHTS)
def test_each_law_is_found_and_no_other(name: str, sums: bool) -> None:
    found = trained(lambda p, m, b, s: WEIGHTS[name](p, m, b, s) / m, sums=sums)
    assert len(found) == 2 * len(PLAN)
    one = law(found)
    assert one is not None
    assert (one.name, one.constant) == (name, pytest.approx(1.0))
    for update in found:
        assert scales(update) == [pytest.approx(one.factor(update))]


@given(st.floats(1e-3, 1e3) | st.sampled_from([2.0, 3.0, 0.5, 256.0]))
def test_a_constant_is_the_users(constant: float) -> None:
    one = law(trained(lambda p, m, b, s: constant / m))
    assert one is not None
    assert one.kind == "one"
    assert one.constant == pytest.approx(constant)


def test_what_no_law_explains_is_no_law() -> None:
    assert law(trained(lambda p, m, b, s: m * p * b**0.5)) is None


def test_with_one_number_of_processes_a_factor_is_the_users_unless_the_reduction_shows_it() -> None:
    alone: dict[str, Any] = {"processes": (2,), "plan": ((2, 8, 1.0), (4, 5, 1.0))}
    own = law(trained(lambda p, m, b, s: 2 / m, **alone))
    assert own is not None
    assert own.kind == "one"
    added = law(trained(lambda p, m, b, s: 1 / m, ratio=1.0, **alone))
    assert added is not None
    assert added.name == "the number of processes"


@pytest.mark.parametrize("ratio", [1.0, 0.5, 1 / 3, -2.0, 1e-6, 1e6])
def test_the_ratio_of_a_reduction_is_found_to_the_last_digits(ratio: float) -> None:
    for update in trained(lambda p, m, b, s: 1 / m, ratio=ratio):
        assert update.reduced
        assert update.ratio == pytest.approx(ratio, rel=1e-12)
        assert all(one.difference < 1e-12 for one in update.matches)


def test_an_update_of_what_one_rank_computed_is_not_reduced() -> None:
    run = made_up(2, PLAN, lambda p, m, b, s: 1 / m, ratio=0.5, sums=False)
    for rank in run.ranks:
        for step in rank.of("step"):
            for index in range(len(SIZES)):
                rank.arrays[f"{step['n']}.grad.{index}"][:] = rank.arrays[f"{step['n']}.local.{index}"]
    for update in updates(run):
        assert not update.reduced
        assert all(one.ratio == pytest.approx(1.0) for one in update.alone)


@given(
    ratio=st.floats(0.01, 100.0),
    wrong=st.integers(0, 3),
    by=st.floats(0.01, 10.0),
    seed=st.integers(0, 1000),
)
def test_the_parameter_that_differs_is_named(ratio: float, wrong: int, by: float, seed: int) -> None:
    made = numpy.random.default_rng(seed)
    reference = [made.standard_normal(50) for _ in range(4)]
    applied = [ratio * one for one in reference]
    assert match(applied, reference, range(10, 14)).difference < 1e-10
    applied[wrong] = applied[wrong] * (1 + by)
    found = match(applied, reference, range(10, 14))
    assert found.worst == 10 + wrong or by > 1.0  # a large one moves the ratio as well
    assert found.difference > 0.2 * min(by, 1.0)


def test_a_match_with_nothing_is_no_number() -> None:
    zero, one = [numpy.zeros(3)], [numpy.ones(3)]
    assert numpy.isnan(match(one, zero, [0]).ratio)
    assert numpy.isnan(match([numpy.full(3, numpy.inf)], one, [0]).ratio)
    assert match(zero, one, [0]).ratio == 0.0


def test_a_parameter_whose_gradient_is_noise_is_held_to_what_matters() -> None:
    reference = [numpy.ones(50), numpy.full(50, 1e-12)]
    assert match([numpy.ones(50), numpy.full(50, 3e-12)], reference, [0, 1]).difference < 1e-6


@given(st.floats(0.01, 1e6), st.floats(-1e-4, 1e-4))
def test_closeness_is_relative_and_goes_both_ways(value: float, by: float) -> None:
    assert close(value, value * (1 + by)) and close(value * (1 + by), value)  # noqa: PT018
    assert not close(value, value * 1.01)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.1, 1), (1.0, 1), (1000.0, 1), (0.05, 1), (0.25, 2), (1e-4, 1), (5e-4, 1), (1 / 3, 6), (0.0125, 3), (0.0, 1)],
)
def test_digits_are_those_that_a_person_writes(value: float, expected: int) -> None:
    assert digits(value) == expected


@given(st.integers(1, 9), st.integers(-6, 6), st.sampled_from([3, 6, 7, 12]))
def test_a_round_number_divided_is_less_round(digit: int, power: int, by: int) -> None:
    whole = digit * 10.0**power
    if digits(whole / by) > 1:
        assert rounder(whole, whole / by)
        assert not rounder(whole / by, whole)


def test_among_round_numbers_powers_of_ten_come_first() -> None:
    assert rounder(0.1, 0.4)
    assert not rounder(0.4, 0.1)
    assert not rounder(0.2, 0.4)


def test_words_for_numbers() -> None:
    assert [times(one) for one in (4.0, 0.25, 1 / 3, 0.37, 1.0, 0.0)] == ["x 4", "/ 4", "/ 3", "x 0.37", "x 1", "x 0"]
    assert [numbers(one) for one in ([2], [2, 4], [2, 3, 4])] == ["2", "2 and 4", "2, 3 and 4"]
    assert [count(1, "batch"), count(2, "batch"), count(1437, "sample")] == ["1 batch", "2 batches", "1,437 samples"]
