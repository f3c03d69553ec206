"""Writes a recipe out as a script: Squall's own loop, verbatim, with the recipe's numbers filled in.

The loop is read from the package's own file (without importing it, since that would load torch), so what is printed
is what `squall train` runs, and the script ends with the same weights. Whoever wants another loop starts from it.
"""

from __future__ import annotations

import ast
import pprint
import textwrap
from importlib import resources
from typing import Any

from squall.errors import InputError
from squall.recipe import Recipe

_TEMPLATE = '''\
"""{title}

Written by `squall recipes {name} --as-script`: Squall's own loop, to be changed. Alone or on several processes:

    python {file} --data DIR
    torchrun --nproc-per-node 2 {file} --data DIR
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import squall
from squall import Loss, Run
from squall.metrics import Metrics
from squall.optim.build import build
from squall.recipe import DataSpec, ModelSpec
{imported}from squall.training.parts import data_of, model_of

MODEL = ModelSpec({model})
DATA = DataSpec({data})


def step(model: nn.Module, batch: Any) -> tuple[Loss, Metrics]:
    """{step}"""
    images, labels = batch
    logits = model(images)
    loss = F.cross_entropy(logits, labels, reduction="{reduction}", label_smoothing={label_smoothing})
    return Loss(loss, len(labels)), {{"accuracy": squall.mean(logits.argmax(1) == labels)}}


{job}


{loop}


def main() -> None:
    """From the data to the result."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets")
    arguments.add_argument("--out", default=None, help="folder of the run; nothing is written without one")
    given = arguments.parse_args()

    run = squall.Run(
        given.out,
        name={name!r},
{run}
    )
    train, val, test = data_of(DATA, run.world, given.data, seed={seed})
    model = model_of(MODEL)
    optimizer = build(
        model,
{optimizer}
    )
    rate = squall.lr(
{rate}
    )
    model, optimizer = run.setup(model, optimizer, lr=rate)
    job = Job(
        step=step,
        measure={measure},
        train=train,
        val=val,
        test=test,
        num_workers={num_workers},
        clip_grad_norm={clip_grad_norm},
    )
    minibatch(run, model, optimizer, job)
    result = run.finish()
    run.close()
    if run.is_main:
        print({told})


if __name__ == "__main__":
    main()
'''


_STEPS = {
    "sample": "One virtual worker's samples -> a sum and its count, never a mean.",
    "worker": "One virtual worker's samples -> the loss of its whole batch, weighed by their number.",
}


def script(recipe: Recipe) -> str:
    """The complete script.

    Raises:
        InputError: the recipe lacks network or data, has a loss of one's own, or another strategy than sync.
    """
    _check(recipe)
    assert recipe.model is not None
    assert recipe.data is not None
    compute, optimizer, over_worker = recipe.compute, recipe.optimizer, recipe.loss_over == "worker"
    run = {
        "epochs": recipe.epochs,
        "global_batch_size": recipe.global_batch_size,
        "worker_batch_size": recipe.worker_batch_size,
        "seed": recipe.seed,
        "last_batch": recipe.last_batch,
        "loss_over": recipe.loss_over,
        "ema": recipe.ema,
        "eval_batch_size": recipe.eval_batch_size,
        **compute.model_dump(),
    }
    rate = {name: value for name, value in recipe.lr if value is not None}
    rate["milestones"] = list(rate["milestones"])
    told = "f\"test accuracy {result.test['accuracy']:.2%}, weights sha256 {result.values['weights_sha256']}\""
    return _TEMPLATE.format(
        title=_title(recipe),
        name=recipe.name,
        file=f"{recipe.name.replace('-', '_')}.py",
        model=_call({**recipe.model.model_dump()}),
        data=_call(recipe.data.model_dump()),
        step=_STEPS[recipe.loss_over],
        reduction="mean" if over_worker else "sum",
        measure="over_samples(step)" if over_worker else "step",
        imported="from squall.task import over_samples\n" if over_worker else "",
        label_smoothing=recipe.loss.label_smoothing,
        job=_source("Job"),
        loop=_source("minibatch"),
        run=_named(run),
        seed=recipe.seed,
        optimizer=_named({"name": optimizer.name, "lr": recipe.lr.base, **optimizer.model_dump(exclude={"name"})}),
        rate=_named(rate),
        num_workers=recipe.data.num_workers,
        clip_grad_norm=recipe.clip_grad_norm,
        told=told,
    )


def _check(recipe: Recipe) -> None:
    rows = []
    if recipe.model is None or recipe.data is None:
        rows.append(("found", "no network or no data in it; a task has both in its own file already"))
    if recipe.loss.name != "cross_entropy":
        rows.append(
            (f"loss.name={recipe.loss.name}", "a script is written for cross_entropy; its step takes your loss")
        )
    if recipe.strategy != "sync":
        rows.append((f"strategy={recipe.strategy}", "a script is written for sync"))
    if rows:
        raise InputError(f"{recipe.name} cannot be written as a script", rows)


def _title(recipe: Recipe) -> str:
    assert recipe.model is not None
    assert recipe.data is not None
    model, data = recipe.model.name, recipe.data.root or recipe.data.name
    return f"{recipe.name}: {model} on {data}, {recipe.epochs} epochs, {recipe.virtual_workers} virtual workers."


def _source(name: str) -> str:
    """A class or function of the loop, as it stands in the package, decorators included."""
    text = (resources.files("squall") / "loop" / "minibatch.py").read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            return "\n".join(text.splitlines()[first - 1 : node.end_lineno])
    raise AssertionError(f"the loop's file has no {name}")


def _named(values: dict[str, Any]) -> str:
    """Arguments of a call, one a line."""
    return textwrap.indent(",\n".join(f"{key}={_literal(value)}" for key, value in values.items()) + ",", " " * 8)


def _call(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}={_literal(value)}" for key, value in values.items() if value not in (None, (), []))


def _literal(value: Any) -> str:
    return pprint.pformat(list(value) if isinstance(value, tuple) else value, width=10_000, sort_dicts=False)
