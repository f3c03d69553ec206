"""`squall explain`: the recipe as arithmetic. The network is built on torch's meta device: shapes without memory."""

from __future__ import annotations

import json
from dataclasses import replace
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from squall.cli import flags, sizes
from squall.cli.target import Target, resolve
from squall.errors import InputError

if TYPE_CHECKING:
    from torch import nn


def explain(
    target: flags.TargetArgument,
    overrides: flags.Overrides = None,
    processes_: Annotated[
        int, typer.Option("--processes", "-P", min=1, help="For bytes that each sends and holds.")
    ] = 8,
    data: flags.DataFlag = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", min=1, help="Training samples, where the data is not here.", show_default=False),
    ] = None,
    json_: flags.JsonFlag = False,
) -> None:
    """Print a recipe as arithmetic: minibatch, rate, steps, bytes, memory; warnings."""
    wish = resolve(target, overrides or [])
    total = samples or sizes.num_train(wish, flags.data_folder(data), scan=True)
    if total is None:
        raise InputError(
            f"how many training samples has {target}?",
            [("found", "no data set to count"), ("to do", "--samples N, or --data DIR where the set lies")],
        )
    from squall.explain import PLAN, model_facts
    from squall.explain import explain as explain_

    explanation = explain_(wish.recipe, model_facts(_network(wish), wish.recipe.optimizer), total, processes_)
    told = replace(explanation, last_line=PLAN.format(name=" ".join([target, *map(quote, overrides or [])])))
    print(json.dumps(told.to_json()) if json_ else told.text())


def _network(wish: Target) -> nn.Module:
    """The network: a recipe's without its numbers; a task's own factory may need real ones (pretrained weights)."""
    import torch

    from squall import model as models
    from squall.model import weights

    if wish.task is not None:
        return wish.task.model()
    spec = wish.recipe.model
    if spec is None:
        raise InputError(f"{wish.given} names no network", [("to do", "add a [model] table")])
    with torch.device("meta"):
        model = models.build(spec.name, spec.arguments)
    weights.freeze(model, spec.freeze)
    return model
