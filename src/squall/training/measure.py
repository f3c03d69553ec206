"""Measures a run's model again, by the calls and in the arithmetic of its training: equal numbers, not near ones.

The evaluation batches are those of the run's `eval_batch_size`, threads, precision and memory format those of its
recipe; with an average of weights (`ema`) that average is measured, as in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from squall.cluster.world import World
from squall.errors import InputError
from squall.model import weights
from squall.recipe import Recipe
from squall.run import Run
from squall.task import Task
from squall.training.saved import weights_of
from squall.training.spec import run_spec
from squall.training.users import checked_steps, model_from


@dataclass(frozen=True)
class Measured:
    """What a model gives on its evaluation sets.

    Attributes:
        val, test: averages by name; empty where there is no such set.
        rows: for each sample of the test set (or, without one, of the validation set), in its order: target, predicted
            class, probability of that class; float64 of shape (N, 3). None unless asked for.
    """

    val: dict[str, float]
    test: dict[str, float]
    rows: torch.Tensor | None = None


def measure(recipe: Recipe, task: Task, folder: Path, world: World, *, predictions: bool = False) -> Measured:
    """Loads a run's weights into the task's model and measures it on all processes of a job.

    Arguments:
        recipe: the run's own.
        task: its model and its data.
        folder: the run's.
        predictions: give every sample's prediction too.

    Raises:
        InputError: no weights, or ones that do not fit; predictions of a task that classifies nothing.
    """
    path = weights_of(folder)
    run = Run(None, world=world, name=recipe.name, **{**run_spec(recipe), "ema": None})
    try:
        model = model_from(task)
        weights.load_into(model, path)
        model, _ = run.setup(model, torch.optim.SGD(model.parameters(), lr=0.0))
        steps = checked_steps(task, run, model)
        found = [
            run.averages(
                model, data, steps.measure, collate=steps.collate, num_workers=_loaders(recipe, task), name=name
            )
            if data is not None
            else {}
            for name, data in (("val", task.val), ("test", task.test))
        ]
        rows = _predictions(recipe, task, run, model) if predictions else None
        return Measured(found[0], found[1], rows)
    finally:
        run.close()


def _predictions(recipe: Recipe, task: Task, run: Run, model: nn.Module) -> torch.Tensor:
    data = task.test if task.test is not None else task.val
    if data is None:
        raise InputError("there is no test set to predict", [("found", "a task with training data only")])
    return run.evaluate(model, data, _predicted, collate=task.collate, num_workers=_loaders(recipe, task)).values


def _predicted(outputs: Any, targets: Any) -> torch.Tensor:
    """(n, C) logits and (n,) classes -> (n, 3): target, predicted class, its probability."""
    if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2 or targets.ndim != 1 or targets.is_floating_point():
        raise InputError(
            "predictions are written for classification only",
            [("needed", "outputs of shape (samples, classes) and one class a sample")],
        )
    probability, predicted = outputs.double().softmax(1).max(1)
    return torch.stack([targets.double(), predicted.double(), probability], dim=1)


def _loaders(recipe: Recipe, task: Task) -> int:
    return recipe.data.num_workers if recipe.data else task.num_workers
