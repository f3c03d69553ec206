"""The user's code as a run calls it: the loss looked at once, and exceptions shown by the user's own lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import nn

from squall.cluster.world import World
from squall.data.batches import Collate, Inspected, read
from squall.data.order import Draw
from squall.data.usercode import user_code_error
from squall.errors import RunError, SquallError
from squall.run.evaluate import evaluating
from squall.run.guards import refuse_ignored
from squall.run.spec import RunSpec
from squall.task import LossKind, StepFunction, Task, as_pair, over_samples, probe, probe_step

_PROBED = 16


class Around(Protocol):
    """What a task's steps are called in: a `Run`, or a role's process."""

    @property
    def spec(self) -> RunSpec:
        """The numbers of the run."""

    @property
    def world(self) -> World:
        """Where it computes."""

    def finisher(self, data: Any) -> Callable[[Any, Draw], Any]:
        """What is done to a batch of a set once it is on its device."""

    def position(self) -> str:
        """Where the run is, for messages."""


@dataclass(frozen=True)
class Steps:
    """How a task's batches are made and computed.

    Attributes:
        train: the step for training; its exceptions show the user's frames.
        measure: the step for evaluation.
        collate: joins samples to a batch, and refuses those whose loss would be another than the probe found.
    """

    train: StepFunction
    measure: StepFunction
    collate: Collate | None


def model_from(task: Task) -> nn.Module:
    """The task's model; an exception in its factory shows the user's frames."""
    model: nn.Module = guarded(task.model, "the model factory")
    return model


def checked_steps(task: Task, run: Around, model: nn.Module) -> Steps:
    """The task's steps, after a look at how its loss treats samples."""
    if run.spec.loss_over == "worker":
        step = _framed(task.step_function("worker"), run)
        return Steps(step, over_samples(step), task.collate)
    kind = _probed(task, run, model)
    step = _framed(task.step_function(kind), run)
    return Steps(step, step, Inspected(task.collate, refuse_ignored) if kind == "mean" else task.collate)


def _probed(task: Task, run: Around, model: nn.Module) -> LossKind | None:
    """How the task's loss treats samples; None for a step of its own, which gives sums."""
    size = min(_PROBED, len(task.train))
    if size < 2:
        return "samples"
    first = size // 2 + 1 if size > 2 else 1
    cuts = [(0, size), (0, first), (first, size)]
    # from the whole set: the first samples of a sorted one are of one class, where class weights cannot be seen
    ids = np.linspace(0, len(task.train) - 1, size).round().astype(np.int64)
    draws = [Draw(ids[a:b], np.zeros(b - a, dtype=np.int64)) for a, b in cuts]

    def batches(wanted: list[Draw]) -> list[Any]:
        finish = run.finisher(task.train)
        reading = read(
            task.train, wanted, seed=run.spec.seed, device=run.world.device, collate=task.collate, finish=finish
        )
        return [batch for _, batch in reading]

    with evaluating(model):
        if task.loss is not None:
            inputs, targets = guarded(lambda: as_pair(batches(draws[:1])[0]), "the data set")
            outputs = guarded(lambda: model(inputs), "the model's forward")
            kind: LossKind = guarded(lambda: probe(task.loss, outputs, targets), "the loss")  # type: ignore[arg-type]
            return kind
        step = task.step_function()
        whole, left, right = batches(draws)
        guarded(lambda: probe_step(step, model, whole, (left, right), size), "the task's step")
        return None


def _framed(step: StepFunction, run: Around) -> StepFunction:
    def call(model: nn.Module, batch: Any) -> Any:
        try:
            return step(model, batch)
        except SquallError:
            raise
        except Exception as error:
            raise explained(error, f"the task's step, {run.position()}") from error

    return call


def guarded(function: Callable[[], Any], at: str) -> Any:
    """What a function of the user's gives; `at` says what it is where it raises, or would end the process."""
    try:
        return function()
    except SquallError:
        raise
    except (Exception, SystemExit) as error:
        raise explained(error, at) from error


def explained(error: Exception | SystemExit, at: str) -> SquallError:
    """An exception out of users' code, or out of torch on its behalf."""
    operator, found, _ = str(error).partition(" does not have a deterministic implementation")
    if not found or not isinstance(error, RuntimeError):
        return user_code_error(error, at)
    return RunError(
        f"{operator} has no deterministic implementation, at {at}",
        [
            ("rule", "reduction=exact gives the same bits every time, so every operator must"),
            ("to do", "compute.reduction=fast, or another operator"),
        ],
    )
