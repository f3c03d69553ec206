"""What the processes of an asynchronous training build for themselves: the same network, sets and loss in each.

A role's process gets an `Origin`, a small value, and makes of it what it computes with. In simulated time all roles
live in one process and borrow one network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from squall.cluster.world import World
from squall.data.order import Draw
from squall.recipe import Recipe
from squall.rng import Stream, mix
from squall.run import arithmetic, evaluate
from squall.run.buffers import is_whole, owners
from squall.run.placing import check_parameters
from squall.run.spec import RunSpec
from squall.run.stepper import finisher
from squall.server.gradients import Gradients
from squall.server.layout import Layout, held_buffer
from squall.strategy.evaluator import Measure
from squall.task import Task
from squall.training.parts import compose
from squall.training.spec import run_spec
from squall.training.users import Steps, checked_steps, guarded, model_from


def alone(device: str) -> World:
    """A process of its own: no group, no store, no sockets."""
    return World(0, 1, 0, 1, torch.device(device), None, None)


@dataclass(frozen=True)
class Origin:
    """From which any process builds the same.

    Attributes:
        recipe: of the run.
        task: where it is not the recipe's own.
        data_root: folder of the data sets.
        device: where replicas and the evaluator compute: cpu or cuda.
    """

    recipe: Recipe
    task: Task | None
    data_root: Path
    device: str = "cpu"


class Built:
    """A network with its sets and its loss, in this process.

    Arguments:
        origin: of them.
        role: for messages.
    """

    def __init__(self, origin: Origin, role: str) -> None:
        recipe = origin.recipe
        self.spec, self.world, self._role = RunSpec(**run_spec(recipe)), alone(origin.device), role
        self._gradients: Gradients | None = None
        torch.manual_seed(mix(Stream.INIT, self.spec.seed) >> 1)
        self.task = origin.task or compose(recipe, self.world, origin.data_root)
        self.model: nn.Module = model_from(self.task).train()
        check_parameters(self.model)
        self.model.to(self.world.device)
        if self.spec.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        rule = recipe.optimizer
        self.layout = Layout.of(
            self.model,
            weight_decay=rule.weight_decay,
            no_weight_decay=tuple(rule.no_weight_decay),
            groups=tuple(rule.groups),
        )
        self.steps: Steps = checked_steps(self.task, self, self.model)
        self._clip = recipe.clip_grad_norm

    def finisher(self, data: Any) -> Callable[[Any, Draw], Any]:
        """What is done to a batch of a set."""
        return finisher(data, self.spec)

    def position(self) -> str:
        """For messages."""
        if self._gradients is None or self._gradients.at < 0:
            return self._role
        plan = self._gradients.order.step(self._gradients.at)
        return f"{self._role}, epoch {plan.epoch + 1}, minibatch {self._gradients.at}"

    def counters(self) -> torch.Tensor:
        """The integer buffers' values at the beginning."""
        whole = owners(self.model, is_whole)
        return torch.tensor([int(held_buffer(whole[name][0])) for name in self.layout.counters], dtype=torch.int64)

    def gradients(self) -> Gradients:
        """What a replica computes with."""
        steps, task = self.steps, self.task

        def backward(loss: torch.Tensor) -> None:
            guarded(lambda: torch.autograd.backward(loss), f"the backward pass, {self.position()}")

        made = Gradients(
            self.model, self.layout, self.spec, steps.train, task.train, steps.collate, self._clip, backward
        )
        self._gradients = made
        return made

    def measure(self) -> Measure:
        """What the evaluator computes with; takes the network for itself."""
        gradients = Gradients(
            self.model, self.layout, self.spec, self.steps.train, self.task.train, self.steps.collate, self._clip
        )

        def averages(weights: torch.Tensor, counters: list[int]) -> tuple[dict[str, float], dict[str, float]]:
            gradients.attach(weights)
            gradients.set_counters(counters)
            found = [
                evaluate.averages(
                    self.spec,
                    self.world,
                    self.model,
                    data,
                    self.steps.measure,
                    name=name,
                    collate=self.steps.collate,
                )
                if data is not None
                else {}
                for name, data in (("val", self.task.val), ("test", self.task.test))
            ]
            return found[0], found[1]

        return averages


def make_gradients(origin: Origin, role: str) -> Gradients:
    """In a replica's own process, for good."""
    built = Built(origin, role)
    arithmetic.enter(built.spec, built.world.device)
    return built.gradients()


def make_measure(origin: Origin) -> Measure:
    """In the evaluator's own process, for good."""
    built = Built(origin, "evaluator")
    arithmetic.enter(built.spec, built.world.device)
    return built.measure()
