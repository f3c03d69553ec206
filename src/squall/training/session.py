"""`squall.train`: one training, from a task and a recipe to a result.

Recipe + Task -> model, optimiser, Run -> strategy (the loop) -> Result
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from squall.cluster.world import World, join
from squall.data.batches import read
from squall.data.order import Draw
from squall.data.usercode import user_code_error
from squall.errors import InputError, SquallError, UserCodeError
from squall.loop import Job
from squall.optim.build import build
from squall.recipe import Recipe, to_toml
from squall.records import Sink
from squall.run import Result, Run
from squall.run.evaluate import evaluating
from squall.run.folder import RECIPE, RECORDS
from squall.strategy import STRATEGIES
from squall.task import StepFunction, Task, probe, probe_step
from squall.training.parts import compose
from squall.training.progress import Progress

_PROBED = 16


def train(
    task: Task | None,
    recipe: Recipe,
    *,
    out: str | Path | None = None,
    world: World | None = None,
    sinks: tuple[Sink, ...] | None = None,
    data_root: Path | None = None,
) -> Result:
    """Trains a task by a recipe, on the processes of this job (alone, under torchrun or SLURM).

    Arguments:
        task: model, loss and data; None: as the recipe's `model` and `data` tables say.
        recipe: how to train.
        out: the run folder; None: nothing is written.
        world: the job's processes, if they have joined already.
        sinks: called with every record, on rank 0; by default a line an epoch is printed, () prints nothing.
        data_root: folder of the data sets that the recipe names; by default ./data.

    Returns:
        The result, the same averages on every process; `.test["accuracy"]`.

    Raises:
        InputError: a mistake in recipe, data or task.
        UserCodeError: an exception in the task's own code.
        RunError: the run could not go on (diverged, a rank lost).
    """
    owns_world = world is None
    world = world if world is not None else join()
    run: Run | None = None
    try:
        task = task or compose(recipe, world, data_root or Path("data"))
        sinks = (Progress(),) if sinks is None else sinks
        run = Run(out, world=world, sinks=sinks, name=recipe.name, **run_spec(recipe))
        if run.is_main and run.path is not None:
            (run.path / RECIPE).write_text(to_toml(recipe), encoding="utf-8")
        model = _guarded(task.model, "the model factory").train()
        model, optimizer = run.setup(model, _optimizer(model, recipe), lr=recipe.lr.rate())
        job = Job(
            step=checked_step(task, run, model),
            train=task.train,
            val=task.val,
            test=task.test,
            collate=task.collate,
            num_workers=recipe.data.num_workers if recipe.data else task.num_workers,
            clip_grad_norm=recipe.clip_grad_norm,
        )
        STRATEGIES[recipe.strategy](run, model, optimizer, job)
        return run.finish(recipe=recipe.name)
    except InputError:
        if run is not None and run.is_main and run.path is not None and not (run.path / RECORDS).exists():
            (run.path / RECIPE).unlink(missing_ok=True)  # nothing was trained: leave nothing
        raise
    except UserCodeError as error:
        raise (_placed(error, run) if run is not None else error) from error.__cause__
    finally:
        if run is not None:
            run.close()
        if owns_world:
            world.close()


def run_spec(recipe: Recipe) -> dict[str, Any]:
    """The fields of `squall.Run` that a recipe fixes."""
    compute = recipe.compute
    return {
        "epochs": recipe.epochs,
        "global_batch_size": recipe.global_batch_size,
        "worker_batch_size": recipe.worker_batch_size,
        "seed": recipe.seed,
        "last_batch": recipe.last_batch,
        "reduction": compute.reduction,
        "fuse": compute.fuse,
        "precision": compute.precision,
        "threads": compute.threads,
        "channels_last": compute.channels_last,
        "compile": compute.compile,
        "ema": recipe.ema,
        "eval_batch_size": recipe.eval_batch_size,
        "loss_over": recipe.loss_over,
    }


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    spec = recipe.optimizer
    return build(
        model,
        name=spec.name,
        lr=recipe.lr.base,
        momentum=spec.momentum,
        nesterov=spec.nesterov,
        betas=spec.betas,
        eps=spec.eps,
        weight_decay=spec.weight_decay,
        no_weight_decay=spec.no_weight_decay,
        groups=spec.groups,
        options=spec.options,
    )


def checked_step(task: Task, run: Run, model: nn.Module) -> StepFunction:
    """The task's step, after a look at how its loss treats samples; its exceptions show the user's frames."""
    size = min(_PROBED, len(task.train))
    if run.spec.loss_over == "worker" or size < 2:
        step = task.step_function("mean" if run.spec.loss_over == "worker" else "samples")
        return _framed(step, run)
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
            inputs, targets = _guarded(lambda: _as_pair(batches(draws[:1])[0]), "the data set")
            outputs = _guarded(lambda: model(inputs), "the model's forward")
            kind = _guarded(lambda: probe(task.loss, outputs, targets), "the loss")  # type: ignore[arg-type]
            return _framed(task.step_function(kind), run)
        step = task.step_function()
        whole, left, right = batches(draws)
        _guarded(lambda: probe_step(step, model, whole, (left, right), size), "the task's step")
        return _framed(step, run)


def _as_pair(batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise InputError(
            f"loss= needs batches of (input, target); got a {type(batch).__name__}",
            [("to do", "give step=function of (model, batch), or a collate that makes pairs")],
        )
    return batch[0], batch[1]


def _framed(step: StepFunction, run: Run) -> StepFunction:
    def call(model: nn.Module, batch: Any) -> Any:
        try:
            return step(model, batch)
        except SquallError:
            raise
        except Exception as error:
            raise user_code_error(error, f"the task's step, {run.position()}") from error

    return call


def _placed(error: UserCodeError, run: Run) -> UserCodeError:
    """The error with rank, epoch and step, if it does not name them yet."""
    where = run.position()
    if where in error.headline:
        return error
    placed = UserCodeError(f"{error.headline}, {where}", error.rows, error.hint)
    placed.traceback = error.traceback
    return placed


def _guarded(function: Callable[[], Any], at: str) -> Any:
    try:
        return function()
    except SquallError:
        raise
    except Exception as error:
        raise user_code_error(error, at) from error
