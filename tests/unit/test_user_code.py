"""Whatever part of the user's code fails, the message shows the user's line and where the run was."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import squall
from squall.cluster.world import join
from squall.errors import InputError, RunError, UserCodeError
from squall.optim.build import build
from squall.recipe import DataSpec
from squall.strategy import STRATEGIES
from squall.training import session
from squall.training.measure import measure
from squall.training.parts import attribute, data_of
from tests.unit.runs import make_data, make_model

FIELDS: dict[str, Any] = {"epochs": 1, "global_batch_size": 8, "worker_batch_size": 4}


def train(loss: Any = F.cross_entropy, model: Any = make_model, **fields: Any) -> squall.Result:
    task = squall.Task(model=model, loss=loss, train=make_data())
    return squall.train(task, squall.Recipe(**{**FIELDS, "lr": 0.1, **fields}), sinks=())


# -- data.name, loss.name ------------------------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of a module of the user's, to be written."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "users_own_module.py"
    sys.modules.pop("users_own_module", None)


def own_data(name: str) -> Any:
    return data_of(DataSpec(name=name), join("cpu"), Path("data"), 0)


def test_a_function_of_sets_that_raises_shows_its_line(module: Path) -> None:
    module.write_text('def sets():\n    raise KeyError("gooseneck")\n')
    with pytest.raises(UserCodeError, match=f"your code raised KeyError at data.name={module.stem}:sets") as error:
        own_data(f"{module.stem}:sets")
    assert f"{module.name}:2 in sets" in str(error.value)


def test_sets_that_are_no_function_are_named(module: Path) -> None:
    module.write_text("sets = (1, 2)\n")
    with pytest.raises(InputError, match=f"data.name={module.stem}:sets is a tuple"):
        own_data(f"{module.stem}:sets")


@pytest.mark.parametrize(
    ("line", "kind"),
    [("import no_such_package_here", "ModuleNotFoundError"), ("1 / 0", "ZeroDivisionError")],
)
def test_an_import_that_fails_inside_the_users_module_shows_its_line(module: Path, line: str, kind: str) -> None:
    module.write_text(f"import os\n{line}\n")
    with pytest.raises(UserCodeError, match=f"your code raised {kind} at the import of {module.stem}") as error:
        attribute(f"{module.stem}:loss", "loss.name")
    assert f"{module.name}:2" in str(error.value)
    assert line in str(error.value)
    assert "install it" not in str(error.value)


@pytest.mark.parametrize("name", ["no_such_module_here:loss", "no_such_module_here.sub:loss"])
def test_a_module_that_is_not_there_is_the_recipes_mistake(name: str) -> None:
    with pytest.raises(InputError, match=r"No module named 'no_such_module_here'") as error:
        attribute(name, "loss.name")
    assert "install it, or run where it can be imported" in str(error.value)


@pytest.mark.parametrize("name", [":loss", ".near:loss", "mine", "mine:"])
def test_a_name_that_names_nothing_is_the_recipes_mistake(name: str) -> None:
    with pytest.raises(InputError, match="is not known"):
        attribute(name, "loss.name")


# -- the loop ------------------------------------------------------------------------------------------------------


class FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        raise KeyError("gooseneck")


class PutsBackward(FailsBackward):
    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0].clone().put_(torch.tensor([0]), torch.ones(1))  # has no deterministic implementation


def through(function: Any) -> Any:
    return lambda out, y: F.cross_entropy(function.apply(out), y)


def test_a_backward_of_ones_own_shows_its_line() -> None:
    with pytest.raises(UserCodeError, match="your code raised KeyError at rank 0 of 1, epoch 1, step 0") as error:
        train(through(FailsBackward))
    assert 'raise KeyError("gooseneck")' in str(error.value)
    assert "in backward" in str(error.value)
    assert "loop/minibatch.py" in error.value.traceback


def test_an_operator_without_a_deterministic_kernel_is_named_in_the_backward_pass() -> None:
    with pytest.raises(RunError, match=r"put_ has no deterministic implementation, at rank 0 of 1, epoch 1") as error:
        train(through(PutsBackward))
    assert "reduction=fast" in str(error.value)
    assert train(through(PutsBackward), compute={"reduction": "fast"}).outcome == "finished"


def test_an_operator_without_a_deterministic_kernel_is_named_in_the_forward_pass() -> None:
    def loss(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(out.clone().put_(torch.tensor([0]), torch.ones(1)), y)

    with pytest.raises(RunError, match="put_ has no deterministic implementation, at the loss"):
        train(loss)


def test_an_optimiser_that_fails_shows_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            raise KeyError("gooseneck")

    monkeypatch.setattr(session, "build", lambda model, **_: Failing(model.parameters(), lr=0.1))
    with pytest.raises(UserCodeError, match="your code raised KeyError at rank 0 of 1, epoch 1, step 0") as error:
        train()
    assert 'raise KeyError("gooseneck")' in str(error.value)


def test_an_exception_of_squalls_own_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk or a lost connection is not the user's code."""
    ours, namespace = session._PACKAGE / "loop" / "stand_in.py", dict[str, Any]()
    exec(compile("def strategy(*_):\n    open('/no/such/file')\n", str(ours), "exec"), namespace)
    monkeypatch.setitem(STRATEGIES, "sync", namespace["strategy"])
    with pytest.raises(FileNotFoundError):
        train()


# -- measuring a run again -------------------------------------------------------------------------------------------


def failing() -> nn.Module:
    raise KeyError("gooseneck")


def test_a_factory_that_fails_when_a_run_is_measured_shows_its_line(tmp_path: Path) -> None:
    recipe = squall.Recipe(**FIELDS, lr=0.1)
    sets = {"loss": F.cross_entropy, "train": make_data(), "val": make_data()}
    squall.train(squall.Task(model=make_model, **sets), recipe, out=tmp_path / "run", sinks=())
    with pytest.raises(UserCodeError, match="your code raised KeyError at the model factory") as error:
        measure(recipe, squall.Task(model=failing, **sets), tmp_path / "run", join("cpu"))
    assert 'raise KeyError("gooseneck")' in str(error.value)


# -- the optimiser's state -----------------------------------------------------------------------------------------


def test_the_optimiser_is_built_on_a_model_that_is_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's Adagrad makes its sums in the constructor, where the parameters lie then."""
    seen: list[bool] = []

    def spy(model: nn.Module, **fields: Any) -> torch.optim.Optimizer:
        weight = next(model.parameters())
        seen.append(weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous())
        return build(model, **fields)

    def make() -> nn.Module:
        return nn.Sequential(nn.Unflatten(1, (5, 1, 1)), nn.Conv2d(5, 3, 3, padding=1), nn.Flatten())

    monkeypatch.setattr(session, "build", spy)
    train(model=make, optimizer={"name": "adagrad"}, compute={"channels_last": True})
    assert seen == [True]


# -- code that would end the process -------------------------------------------------------------------------------


def test_a_model_that_exits_is_an_error_and_ctrl_c_stays_one() -> None:
    def model() -> nn.Module:
        sys.exit("no licence")

    with pytest.raises(UserCodeError, match="your code raised SystemExit at the model factory") as caught:
        train(model=model)
    assert "in model" in str(caught.value)
    assert "no licence" in str(caught.value)

    def stopped() -> nn.Module:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model=stopped)
