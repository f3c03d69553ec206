"""`squall.train`: one training, from a task and a recipe to a result.

Recipe + Task -> model, optimiser, Run -> strategy (the loop) -> Result
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from squall.cluster.world import World, join
from squall.errors import InputError, SquallError, UserCodeError
from squall.loop import Job
from squall.optim.build import build
from squall.recipe import Recipe
from squall.records import Sink, dotted
from squall.run import Result, Run
from squall.run.folder import clear
from squall.run.placing import check_parameters
from squall.strategy import STRATEGIES
from squall.task import Task
from squall.training.held_out import check_held_out
from squall.training.lockstep import refuse
from squall.training.parts import compose
from squall.training.progress import Progress
from squall.training.saved import write_recipe
from squall.training.spec import run_spec
from squall.training.users import checked_steps, explained, guarded, model_from

_PACKAGE = Path(__file__).resolve().parents[1]


def train(
    task: Task | None,
    recipe: Recipe,
    *,
    out: str | Path | None = None,
    world: World | None = None,
    sinks: tuple[Sink, ...] | None = None,
    data_root: Path | None = None,
    trackers: Sequence[str] = (),
    other_arithmetic: bool = False,
    profile: bool = False,
    started: Mapping[str, Any] | None = None,
    engine: str | None = None,
    cluster: str | None = None,
    trust_cluster: bool = False,
) -> Result:
    """Trains a task by a recipe, on the processes of this job (alone, under torchrun or SLURM).

    Arguments:
        task: model, loss and data; None: as the recipe's `model` and `data` tables say.
        recipe: how to train.
        out: the run folder; None: nothing is written. A run in it that did not come to its end goes on from its
            newest whole checkpoint, in the middle of an epoch too.
        world: of lock-step training: the job's processes, if they have joined already.
        sinks: called with every record, on rank 0; by default a line an epoch is printed, () prints nothing.
        data_root: folder of the data sets that the recipe names; by default ./data.
        trackers: "mlflow", "wandb": who gets the records too.
        other_arithmetic: of lock-step training: go on with a run that another arithmetic began, with other bits.
        profile: of lock-step training: write a trace of a few steps by torch's profiler, one file a rank.
        started: how the command line was called, for `squall resume`.
        engine: of an asynchronous strategy: "ray" (the default), or "simulated".
        cluster: address of a Ray cluster that is running; by default a private one on this machine.
        trust_cluster: join a cluster that asks for no token.

    Returns:
        The result, the same averages on every process; `.test["accuracy"]`.

    Raises:
        InputError: a mistake in recipe, data, task or arguments; ranks of a job with an asynchronous strategy.
        UserCodeError: an exception in the task's own code.
        RunError: the run could not go on (diverged, a rank lost).
        KeyboardInterrupt, SystemExit: it was asked to stop, by Ctrl-C or by a signal, and is saved.
    """
    if recipe.strategy not in STRATEGIES:
        lockstep = {"world=": world, "profile=": profile, "other_arithmetic=": other_arithmetic}
        refuse(recipe, [name for name, value in lockstep.items() if value])
        return _by_roles(task, recipe, engine, cluster, trust_cluster, out, sinks, data_root, trackers, started)
    if given := [name for name, value in (("engine", engine), ("cluster", cluster)) if value is not None]:
        raise InputError(
            f"{given[0]}= with strategy={recipe.strategy}",
            [
                ("rule", "an engine runs the roles of an asynchronous strategy"),
                ("to do", "strategy=downpour, or strategy=sandblaster"),
            ],
        )
    owns_world = world is None
    world = world if world is not None else join()
    run: Run | None = None
    try:
        task = task or compose(recipe, world, data_root or Path("data"))
        check_held_out(task, recipe)
        if recipe.checkpoint.keep_best is not None and task.val is None:
            raise InputError(
                f"checkpoint.keep_best={recipe.checkpoint.keep_best} without a validation set",
                [
                    ("rule", "the best is chosen by a metric of the validation set, never of the test set"),
                    ("to do", "data.val_samples=N holds N training samples out; or a task with val="),
                ],
            )
        sinks = (Progress(),) if sinks is None else sinks
        run = Run(
            out,
            world=world,
            sinks=sinks,
            name=recipe.name,
            checkpoint=recipe.checkpoint.rule(),
            trackers=trackers,
            other_arithmetic=other_arithmetic,
            profile=profile,
            **run_spec(recipe),
        )
        run.started, run.config = started, dotted(recipe.model_dump(mode="json"))
        write_recipe(run, recipe)
        model = _in_place(model_from(task).train(), run)
        optimizer = guarded(lambda: _optimizer(model, recipe), "the optimiser")
        model, optimizer = run.setup(model, optimizer, lr=recipe.lr.rate())
        steps = checked_steps(task, run, model)
        job = Job(
            step=steps.train,
            measure=steps.measure,
            train=task.train,
            val=task.val,
            test=task.test,
            collate=steps.collate,
            num_workers=recipe.data.num_workers if recipe.data else task.num_workers,
            clip_grad_norm=recipe.clip_grad_norm,
        )
        _trained(lambda: STRATEGIES[recipe.strategy](run, model, optimizer, job), run)
        return run.finish(recipe=recipe.name)
    except UserCodeError as error:
        raise (_placed(error, run) if run is not None else error) from error.__cause__
    finally:
        if run is not None:
            if run.is_main and run.path is not None and not run.begun:
                clear(run.path)  # nothing was trained: leave nothing
            run.close()
        if owns_world:
            world.close()


def _by_roles(
    task: Task | None,
    recipe: Recipe,
    engine: str | None,
    cluster: str | None,
    trust_cluster: bool,
    out: str | Path | None,
    sinks: tuple[Sink, ...] | None,
    data_root: Path | None,
    trackers: Sequence[str],
    started: Mapping[str, Any] | None,
) -> Result:
    """The trainings whose roles an engine runs."""
    from squall.training.asynchronous import train_asynchronously
    from squall.training.engines import engine_of

    path = Path(out) if out is not None else None
    name = engine or "ray"
    engine_at, shared = engine_of(name, recipe, task, path, cluster, trust_cluster)
    others: Any = {"sinks": sinks, "data_root": data_root, "trackers": trackers, "started": started}
    return train_asynchronously(task, recipe, engine_at, engine_name=name, shared=shared, out=path, **others)


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


def _placed(error: UserCodeError, run: Run) -> UserCodeError:
    """The error with rank, epoch and step, if it does not name them yet."""
    where = run.position()
    if where in error.headline:
        return error
    placed = UserCodeError(f"{error.headline}, {where}", error.rows, error.hint)
    placed.traceback = error.traceback
    return placed


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
        raise explained(error, run.position()) from error
