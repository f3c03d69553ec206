"""Right updates that are like wrong ones: each check names its fault, and accuses nothing that only looks like it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR

from squall.verify.checks import BY_NAME
from squall.verify.checks.training import Training
from squall.verify.finding import Finding
from tests.unit.judging import Judge, loop, network, twice
from tests.unit.test_verify_update import made_up


@pytest.fixture
def judged(tmp_path: Path) -> Judge:
    return Judge(tmp_path)


# loss scaling


def scaled(how: str) -> None:
    model, scaler = network(), torch.amp.GradScaler("cpu", init_scale=1024.0)
    kind = {"fused": lambda given: torch.optim.AdamW(given, fused=True)}.get(
        how, lambda given: torch.optim.SGD(given, 0.01)
    )
    optimizer = kind(model.parameters())

    def update(loss: Any) -> None:
        scaler.scale(loss).backward()
        for one in model.parameters() if how.startswith("by hand") else ():
            one.grad /= scaler.get_scale()
        if how == "by hand, clipped":
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        if how == "fused":
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()

    loop(model, optimizer, update)


@pytest.mark.parametrize("how", ["fused", "by hand", "by hand, clipped"])
def test_a_scale_that_is_taken_out_otherwise_is_taken_out(judged: Judge, how: str) -> None:
    assert judged("loss scaling", lambda: scaled(how)).outcome == "ok"
    assert judged("clipping", lambda: scaled(how)).outcome != "FAIL"


def test_a_scale_that_is_left_in_is_named(judged: Judge) -> None:
    assert "x 1024" in judged("loss scaling", lambda: scaled("left in")).says


# clipping


def clipped(how: str) -> None:
    model = network()
    first, second = torch.optim.SGD(model[0].parameters(), 0.01), torch.optim.SGD(model[2].parameters(), 0.01)
    every = {"first": model[0], "all": model}[how]
    for number, (x, y) in enumerate(twice()):
        F.cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(every.parameters(), 1e-3)
        first.step()
        first.zero_grad()
        if number % 2:
            second.step()
            second.zero_grad()


def test_what_is_clipped_for_another_optimiser_is_no_part_of_an_update(judged: Judge) -> None:
    assert judged("clipping", lambda: clipped("first")).outcome == "ok"
    assert "after each of 2 batches" in judged("clipping", lambda: clipped("all")).says


def limited(*limits: tuple[Any, float]) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def update(loss: Any) -> None:
        loss.backward()
        for clip, limit in limits:
            clip(model.parameters(), limit)
        optimizer.step()

    loop(model, optimizer, update)


def test_it_is_said_how_often_a_limit_of_values_acts(judged: Judge) -> None:
    says = judged("clipping", lambda: limited((nn.utils.clip_grad_value_, 1e-5))).says
    assert "each value to 1e-05" in says
    assert "at least 16 of 16" in says
    assert "at least 0 of 16" in judged("clipping", lambda: limited((nn.utils.clip_grad_value_, 1e5))).says


def test_a_norm_that_is_only_looked_at_is_no_clipping(judged: Judge) -> None:
    look = (nn.utils.clip_grad_norm_, float("inf"))
    assert judged("clipping", lambda: limited(look)).outcome == "--"
    found = judged("clipping", lambda: limited(look, (nn.utils.clip_grad_norm_, 0.5)))
    assert (found.outcome, "to 0.5, of" in found.says) == ("ok", True)
    assert "acted in 0 of" not in found.says


def test_clipping_twice_is_noted(judged: Judge) -> None:
    found = judged("clipping", lambda: limited((nn.utils.clip_grad_norm_, 1.0), (nn.utils.clip_grad_norm_, 0.5)))
    assert (found.outcome, "to 1 and 0.5" in found.says) == ("note", True)


def mixed(weights: Callable[[int, numpy.ndarray[Any, Any]], Sequence[float]], units: Sequence[int] = (8, 8)) -> Finding:
    """Two ranks' own gradients added up with weights, by update and by the norms of the ranks' own."""
    run = made_up(2, [(1, 8, 1.0)] * 6, lambda p, m, b, s: 1.0, ratio=0.5, sums=False)
    for rank in run.ranks:
        rank.about["backend"] = "gloo"  # type: ignore[index]
        for event in rank.of("backward"):
            event["terms"][0]["units"] = units[rank.number]
        for number, step in enumerate(rank.of("step")):
            own = [[one.arrays[f"{step['n']}.local.{index}"] for index in range(2)] for one in run.ranks]
            norms = numpy.array([numpy.linalg.norm(numpy.concatenate(one)) for one in own])
            factors = weights(number, norms)
            for index in range(2):
                rank.arrays[f"{step['n']}.grad.{index}"][:] = sum(
                    f * one[index] for f, one in zip(factors, own, strict=True)
                )
    return BY_NAME["clipping"](Training([run]))


def test_a_weighted_mean_by_hand_is_no_clipping() -> None:
    assert mixed(lambda number, norms: (0.7, 0.3)).outcome == "--"
    assert mixed(lambda number, norms: (0.3 + number / 20, 0.7 - number / 20)).outcome == "--"
    assert mixed(lambda number, norms: (0.06 + number / 100, 3 * (0.06 + number / 100)), units=(10, 30)).outcome == "--"


def test_a_limit_on_each_ranks_own_gradient_is_named() -> None:
    found = mixed(lambda number, norms: numpy.minimum(1, 7.0 / norms) / 2)
    assert (found.outcome, "before the reduction" in found.says) == ("FAIL", True)
    assert found.known == ("lczero-training#162",)


# weight decay


def summed(make: Callable[[Any], torch.optim.Optimizer]) -> None:
    model = network()
    optimizer = make(model.parameters())
    for x, y in twice():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y, reduction="sum").backward()
        optimizer.step()


def test_a_sum_does_not_change_a_decay_that_is_apart_from_the_gradient(judged: Judge) -> None:
    for make in (torch.optim.AdamW, lambda given: torch.optim.Adam(given, 5e-4 / 3, weight_decay=1e-2)):
        assert judged("weight decay", lambda make=make: summed(make)).outcome == "--"


def sgd(rate: float, decay: float, **more: Any) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda given: torch.optim.SGD(
        [{"params": [one], "weight_decay": decay * (one.ndim > 1)} for one in given], rate, momentum=0.9, **more
    )


def test_decay_beside_a_sum_is_wrong_where_the_rate_was_divided(judged: Judge) -> None:
    assert judged("weight decay", lambda: summed(sgd(0.05, 1e-3))).outcome == "note"
    for nesterov in (False, True):
        found = judged("weight decay", lambda n=nesterov: summed(sgd(0.05 / 8, 1e-3, nesterov=n)))
        assert (found.outcome, found.effect) == ("FAIL", "as if the decay were 0.00013: nearly none")
        assert "8 times too weakly: 0.001 beside" in found.says


# momentum


class Inside(torch.optim.Optimizer):
    """Momentum with the rate in its buffer, uncorrected."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": 0.9})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for one in group["params"]:
                buffer = self.state[one].setdefault("v", torch.zeros_like(one))
                buffer.mul_(group["momentum"]).add_(one.grad, alpha=group["lr"])
                one.sub_(buffer)


def scheduled(make: Callable[[Any], Any]) -> None:
    model = network()
    optimizer = Inside(model.parameters(), 0.1)
    schedule = make(optimizer)

    def update(loss: Any) -> None:
        loss.backward()
        optimizer.step()
        schedule.step()

    loop(model, optimizer, update)


@pytest.mark.parametrize("horizon", [16, 60, 200])
def test_the_verdict_on_a_smooth_rate_does_not_depend_on_how_smooth(judged: Judge, horizon: int) -> None:
    assert judged("momentum", lambda: scheduled(lambda one: CosineAnnealingLR(one, horizon))).outcome == "note"


def test_a_rate_that_hardly_changes_shows_no_form(judged: Judge) -> None:
    assert judged("momentum", lambda: scheduled(lambda one: StepLR(one, 6, 0.99999))).outcome == "--"


def test_a_drop_without_correction_is_named(judged: Judge) -> None:
    found = judged("momentum", lambda: scheduled(lambda one: StepLR(one, 6, 0.1)))
    assert (found.outcome, "wrong by x 10" in found.says) == ("FAIL", True)


# sentences


def test_small_differences_are_said_as_what_they_are() -> None:
    run = made_up(2, [(1, 8, 1.0)] * 2, lambda p, m, b, s: 1.0, ratio=0.5, sums=False)
    for rank in run.ranks:
        for step in rank.of("step"):
            step["group_of"] = {"0": 0}  # type: ignore[index]
            rank.arrays[f"{step['n']}.before.0"] = numpy.full(7, 1.0 + 2e-6 * rank.number)  # type: ignore[index]
    assert ": 2e-06 in" in BY_NAME["weights"](Training([run])).says


def test_only_what_was_looked_at_was_finite(judged: Judge) -> None:
    def spoiled(by: float) -> None:
        model = network()
        seen = iter([1.0, 1.0, by, *[1.0] * 20])
        optimizer = torch.optim.SGD(model.parameters(), 0.01)

        def update(loss: Any) -> None:
            (loss * next(seen)).backward()
            if all(torch.isfinite(one.grad).all() for one in model.parameters()):
                optimizer.step()

        loop(model, optimizer, update)

    assert "no loss and no gradient was infinite" in judged("non-finite", lambda: spoiled(1.0)).says
    found = judged("non-finite", lambda: spoiled(float("inf")))
    assert (found.outcome, "1 backward pass not finite" in found.says) == ("note", True)


def test_it_is_said_how_often_a_schedule_moves(judged: Judge) -> None:
    def stepped(every: int) -> None:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        schedule, done = StepLR(optimizer, 1, 0.9), iter(range(1, 100))

        def update(loss: Any) -> None:
            loss.backward()
            optimizer.step()
            if next(done) % every == 0:
                schedule.step()

        loop(model, optimizer, update)

    said = {1: "once an update", 3: "5 times in 16 updates", 8: "once an epoch"}
    for every, words in said.items():
        assert judged("rate", lambda e=every: stepped(e)).says.endswith(f"StepLR moves {words}")
