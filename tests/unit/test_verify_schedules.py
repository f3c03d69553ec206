"""How schedules go on: their horizon, told from a copy that shares nothing with the one that trains."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from squall.verify.observe.horizons import fresh, horizon
from tests.unit.observing import Observed, observed

MOST = 200


def optimizer(lr: Any = 0.1, groups: int = 1) -> Optimizer:
    params = [{"params": [nn.Parameter(torch.zeros(2))], "lr": lr} for _ in range(groups)]
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def sequential(of: Optimizer) -> LRScheduler:
    parts = [lr_scheduler.LinearLR(of, 0.1, total_iters=5), lr_scheduler.CosineAnnealingLR(of, 25)]
    return lr_scheduler.SequentialLR(of, parts, [5])


class Warm(LRScheduler):
    """As many write it: another schedule after the first steps, held under a name of its own."""

    def __init__(self, of: Optimizer, steps: int, after: LRScheduler) -> None:
        self.steps, self.after = steps, after
        super().__init__(of)

    def get_lr(self) -> list[float]:
        if self.last_epoch > self.steps:
            return [float(one) for one in self.after.get_last_lr()]
        return [base * (self.last_epoch + 1) / (self.steps + 1) for base in self.base_lrs]

    def step(self, epoch: int | None = None) -> None:
        if self.last_epoch >= self.steps:
            self.after.step()
            self.last_epoch += 1
            self._last_lr = self.after.get_last_lr()
        else:
            super().step(epoch)


FLAT = "flat"
CASES: dict[str, tuple[Callable[[Optimizer], Any], int | None, bool]] = {
    # make, end, smooth
    "LambdaLR": (lambda of: lr_scheduler.LambdaLR(of, lambda step: max(0.0, 1 - step / 30)), 30, True),
    "MultiplicativeLR": (lambda of: lr_scheduler.MultiplicativeLR(of, lambda step: 0.9 if step <= 8 else 1.0), 8, True),
    "StepLR": (lambda of: lr_scheduler.StepLR(of, 150, 0.1), 150, False),
    "MultiStepLR": (lambda of: lr_scheduler.MultiStepLR(of, [10, 40], 0.1), 40, False),
    "ConstantLR": (lambda of: lr_scheduler.ConstantLR(of, 0.3, 12), 12, False),
    "LinearLR": (lambda of: lr_scheduler.LinearLR(of, 0.1, 1.0, 20), 20, True),
    "PolynomialLR": (lambda of: lr_scheduler.PolynomialLR(of, 25, 2.0), 25, True),
    "CosineAnnealingLR": (lambda of: lr_scheduler.CosineAnnealingLR(of, 60), 60, True),
    "CosineAnnealingWarmRestarts": (lambda of: lr_scheduler.CosineAnnealingWarmRestarts(of, 300), None, False),
    "OneCycleLR": (lambda of: lr_scheduler.OneCycleLR(of, 0.2, total_steps=50), 50, True),
    "ReduceLROnPlateau": (lambda of: lr_scheduler.ReduceLROnPlateau(of), None, False),
    "SequentialLR": (sequential, 30, True),
    "Warm": (lambda of: Warm(of, 5, lr_scheduler.CosineAnnealingLR(of, 30)), None, False),
    "ChainedScheduler": (
        lambda of: lr_scheduler.ChainedScheduler(
            [lr_scheduler.ConstantLR(of, 0.1, 3), lr_scheduler.PolynomialLR(of, 20)], optimizer=of
        ),
        20,
        True,
    ),
    "nothing": (lambda of: lr_scheduler.LambdaLR(of, lambda step: 1.0), None, False),
    "in a list": (lambda of: lr_scheduler.LambdaLR(of, [lambda step: max(0.0, 1 - step / 7)]), 7, True),
}
ALL = {
    **{name: make for name, (make, _, _) in CASES.items()},
    "ExponentialLR": lambda of: lr_scheduler.ExponentialLR(of, 0.9),
    "CyclicLR": lambda of: lr_scheduler.CyclicLR(of, 0.01, 0.1, step_size_up=10),
    "CyclicLR, exp_range": lambda of: lr_scheduler.CyclicLR(of, 0.01, 0.1, 10, mode="exp_range", gamma=0.99),
    "CyclicLR, own": lambda of: lr_scheduler.CyclicLR(of, 0.01, 0.1, 10, scale_fn=lambda cycle: 0.5**cycle),
}

EITHER = [  # with a rate that is a number, or a tensor, which these two do not take
    *((name, False) for name in ALL),
    *((name, True) for name in ALL if not name.startswith(("OneCycle", "Cyclic"))),
]


def walk(scheduler: Any, steps: int) -> list[float]:
    """The rates of a schedule as a training asks for them."""
    rates = [float(scheduler.optimizer.param_groups[0]["lr"])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(steps):
            scheduler.step()
            rates.append(float(scheduler.optimizer.param_groups[0]["lr"]))
    return rates


def test_every_schedule_of_torch_is_here() -> None:
    kinds = {
        name
        for name, one in vars(lr_scheduler).items()
        if isinstance(one, type) and issubclass(one, LRScheduler) and not name.startswith("_")
    }
    assert kinds - {"LRScheduler"} <= {name.partition(",")[0] for name in ALL}


@pytest.mark.parametrize(("name", "as_tensor"), [one for one in EITHER if one[0] in CASES and one[0] != "Warm"])
def test_the_end_of_a_schedule_is_found(name: str, as_tensor: bool) -> None:
    make, end, smooth = CASES[name]
    scheduler = make(optimizer(torch.tensor(0.1) if as_tensor else 0.1))
    found = horizon(fresh(scheduler), MOST)
    assert (found["end"], found["smooth"]) == (end, smooth)
    if end is not None:
        rates = walk(scheduler, end)
        assert found["first"] == pytest.approx(rates[0], rel=1e-5)
        assert found["last"] == pytest.approx(rates[end], rel=1e-5, abs=1e-9)


def test_a_schedule_within_another_goes_on_as_the_copy_said() -> None:
    scheduler = Warm(one := optimizer(), 5, lr_scheduler.CosineAnnealingLR(one, 30))
    copied = fresh(scheduler)
    assert walk(copied, 60) == pytest.approx(walk(scheduler, 60))


def test_what_swings_for_ever_ends_at_its_lowest_or_nowhere() -> None:
    found = horizon(fresh(lr_scheduler.CosineAnnealingWarmRestarts(optimizer(), 40)), MOST)
    assert found["end"] == 39
    assert found["last"] == pytest.approx(0.1 * (1 + math.cos(math.pi * 39 / 40)) / 2)
    assert horizon(fresh(lr_scheduler.ExponentialLR(optimizer(), 0.99)), MOST)["end"] is None


@pytest.mark.parametrize(("name", "as_tensor"), EITHER)
def test_the_copy_shares_nothing_with_the_training(name: str, as_tensor: bool) -> None:
    rate = torch.tensor(0.1) if as_tensor else 0.1
    alone, twin = optimizer(copy.deepcopy(rate)), optimizer(copy.deepcopy(rate))
    scheduler, expected = ALL[name](alone), ALL[name](twin)
    copied = fresh(scheduler)
    assert copied is not None
    groups = copy.deepcopy(
        [{key: value for key, value in one.items() if key != "params"} for one in alone.param_groups]
    )
    plain = {key: value for key, value in vars(scheduler).items() if isinstance(value, int | float | str | list)}
    before = repr(plain)
    horizon(copied, MOST)
    assert [{key: value for key, value in one.items() if key != "params"} for one in alone.param_groups] == groups
    if name != "ChainedScheduler" and name != "SequentialLR":
        assert repr({key: vars(scheduler)[key] for key in plain}) == before
    if name != "ReduceLROnPlateau":
        steps = 40 if name != "nothing" else 3
        assert walk(scheduler, steps) == pytest.approx(walk(expected, steps), rel=1e-6)


@pytest.mark.parametrize("name", ["CosineAnnealingLR", "ExponentialLR", "StepLR", "LinearLR"])
def test_a_copy_begins_where_its_schedule_was_made_whatever_came_after(name: str) -> None:
    for rate in (0.1, torch.tensor(0.1)):
        scheduler = ALL[name](optimizer(rate))
        copied = fresh(scheduler)
        rates = walk(scheduler, 20)
        assert walk(copied, 20) == pytest.approx(rates)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Observed]:
    with observed(tmp_path) as one:
        yield one


@pytest.mark.parametrize("name", [name for name in ALL if name != "ReduceLROnPlateau"])
def test_each_step_is_noted_once_however_schedules_are_made(name: str, watched: Observed) -> None:
    one = optimizer()
    scheduler = ALL[name](one)
    for _ in range(7):
        one.step()
        scheduler.step()
    noted = [event for event in watched.events("schedule") if event["what"] == "step"]
    last = noted[-1]["schedule"]
    assert [event["schedule"] for event in noted] == [last] * 7
    made = [event for event in watched.events("schedule") if event["what"] == "made"]
    assert made[last]["kind"] == type(scheduler).__name__
    assert noted[-1]["rates"] == [float(group["lr"]) for group in one.param_groups]
    watched.updates.note_horizons()
    assert len(watched.events("horizon")) == len(made)


def test_a_plateau_is_noted_with_its_metric(watched: Observed) -> None:
    one = optimizer()
    scheduler = lr_scheduler.ReduceLROnPlateau(one, patience=0)
    for _ in range(3):
        one.step()
        scheduler.step(1.0)
    rates = [event["rates"][0] for event in watched.events("schedule") if event["what"] == "step"]
    assert rates == pytest.approx([0.1, 0.01, 0.001])


@pytest.mark.parametrize("name", ALL)
def test_watched_schedules_are_saved_loaded_and_copied_as_ever(name: str, watched: Observed) -> None:
    scheduler = ALL[name](optimizer())
    kept = io.BytesIO()
    torch.save(scheduler.state_dict(), kept)
    kept.seek(0)
    own = ALL[name](optimizer())
    own.load_state_dict(torch.load(kept, weights_only=False))
    copy.deepcopy(scheduler)
    if name in ("CosineAnnealingLR", "OneCycleLR", "StepLR", "SequentialLR", "ChainedScheduler"):  # others hold lambdas
        pickle.dumps(scheduler)


def test_a_schedule_holds_nothing_of_the_observer(watched: Observed) -> None:
    plain = set(vars(sequential(optimizer())))
    watched.recorder.observing = False
    assert set(vars(sequential(optimizer()))) == plain
    assert not any("watched" in key for key in plain)
