"""`squall.train`: one training, from a task and a recipe to a result.

Recipe + Task -> model, optimiser, Run -> strategy (the loop) -> Result
"""

from __future__ import annotations

import traceback
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
from squall.errors import InputError, RunError, SquallError, UserCodeError
from squall.loop import Job
from squall.optim.build import build
from squall.recipe import Recipe, to_toml
from squall.records import Sink
from squall.run import Result, Run
from squall.run.evaluate import evaluating
from squall.run.folder import RECIPE, RECORDS
from squall.run.placing import check_parameters
from squall.strategy import STRATEGIES
from squall.task import StepFunction, Task, over_samples, probe, probe_step
from squall.training.parts import compose
from squall.training.progress import Progress

_PROBED = 16
_PACKAGE = Path(__file__).resolve().parents[1]


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
        model = _in_place(_guarded(task.model, "the model factory").train(), run)
        optimizer = _guarded(lambda: _optimizer(model, recipe), "the optimiser")
        model, optimizer = run.setup(model, optimizer, lr=recipe.lr.rate())
        step, measure = _checked_steps(task, run, model)
        job = Job(
            step=step,
            measure=measure,
            train=task.train,
            val=task.val,
            test=task.test,
            collate=task.collate,
            num_workers=recipe.data.num_workers if recipe.data else task.num_workers,
            clip_grad_norm=recipe.clip_grad_norm,
        )
        _trained(lambda: STRATEGIES[recipe.strategy](run, model, optimizer, job), run)
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


def _in_place(model: nn.Module, run: Run) -> nn.Module:
    """The model where it will train: Adagrad and some users' optimisers make their state in the constructor."""
    check_parameters(model)
    model.to(run.world.device)
    if run.spec.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def checked_step(task: Task, run: Run, model: nn.Module) -> StepFunction:
    """The task's step for evaluation, after a look at how its loss treats samples."""
    return _checked_steps(task, run, model)[1]


def _checked_steps(task: Task, run: Run, model: nn.Module) -> tuple[StepFunction, StepFunction]:
    """The task's step for training and for evaluation; their exceptions show the user's frames."""
    if run.spec.loss_over == "worker":
        step = _framed(task.step_function("worker"), run)
        return step, over_samples(step)
    step = _framed(_probed_step(task, run, model), run)
    return step, step


def _probed_step(task: Task, run: Run, model: nn.Module) -> StepFunction:
    size = min(_PROBED, len(task.train))
    if size < 2:
        return task.step_function("samples")
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
            return task.step_function(kind)
        step = task.step_function()
        whole, left, right = batches(draws)
        _guarded(lambda: probe_step(step, model, whole, (left, right), size), "the task's step")
        return step


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
            raise _explained(error, f"the task's step, {run.position()}") from error

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
        raise _explained(error, at) from error


def _trained(strategy: Callable[[], None], run: Run) -> None:
    """Runs the loop: what users' code raises in a backward pass or in an update shows its frames."""
    try:
        strategy()
    except SquallError:
        raise
    except Exception as error:
        innermost = traceback.extract_tb(error.__traceback__)[-1].filename
        if Path(innermost).is_relative_to(_PACKAGE):
            raise  # ours: a full disk, a lost peer, a bug
        raise _explained(error, run.position()) from error


def _explained(error: Exception, at: str) -> SquallError:
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
