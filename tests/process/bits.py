"""Trainings whose bits must not depend on the number of processes: a covering selection, and how one is run.

Each property of the list (precision, rule, normalisation, dropout, clipping, EMA, augmentation, last minibatch, fuse,
memory format) stands in two cases or more, with changing company. Twelve virtual workers, so that six processes have
a pass each even where two workers share one; the short last minibatches have fewer passes than processes.

One job a number of processes runs all cases one after the other, since starting processes costs more than a case.
"""

from __future__ import annotations

import json
import lzma
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

import squall
from squall.cluster.world import World
from squall.data.augment import compile_ops
from squall.data.images import ImageSet
from squall.model import weights
from squall.records import Record, Stepped
from squall.training.parts import loss_of, model_of
from tests.jobs import run_job

SGD = {"optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}, "lr": {"base": 0.05}}
ADAMW = {"optimizer": {"name": "adamw", "weight_decay": 0.05}, "lr": {"base": 2e-3}}
LARS = {"optimizer": {"name": "lars", "momentum": 0.9, "weight_decay": 1e-4}, "lr": {"base": 1.0}}
COSINE = {"schedule": "cosine", "warmup_epochs": 1, "warmup_from": 0.01}
CROP = [{"random_crop": 32, "padding": 4}, {"horizontal_flip": 0.5}, {"normalize": "cifar10"}]
CUT = [{"horizontal_flip": 0.5}, {"normalize": "cifar10"}, {"cutout": 8}]
OWN = {"name": "tests.models:conv_with_dropout"}
MLP = {"name": "mlp", "in_features": 64, "hidden": [32], "num_classes": 10, "dropout": 0.3}


@dataclass(frozen=True)
class Outcome:
    """What must be equal: on every rank, and (records and files) on rank 0."""

    weights: str
    ledger: str
    averages: str
    losses: tuple[float, ...] = ()
    files: tuple[tuple[str, str], ...] = ()


Case = Callable[[Path, World | None, Path], Outcome]


def digits(*tables: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """300 training digits in minibatches of 96 = 12 x 8 (the last: 12), evaluated on 110 in batches of 25."""
    plain = [{"normalize": "digits"}]
    recipe = {
        "epochs": 2,
        "global_batch_size": 96,
        "worker_batch_size": 8,
        "eval_batch_size": 25,
        "model": {"name": "resnet8", "num_classes": 10, "in_channels": 1, "width": 4},
        "data": {"name": "digits", "train": plain, "val": plain, "train_limit": 300, "test_limit": 110},
    }
    return _joined(recipe, *tables, fields)


def cifar(*tables: Mapping[str, Any], train: Any = CROP, **fields: Any) -> dict[str, Any]:
    """200 photographs of CIFAR-10 in minibatches of 72 = 12 x 6 (the last: 56), evaluated on 60 in batches of 17."""
    data = {"name": "cifar10", "train": train, "val": [{"normalize": "cifar10"}], "train_limit": 200, "test_limit": 60}
    recipe = {
        "epochs": 2,
        "global_batch_size": 72,
        "worker_batch_size": 6,
        "eval_batch_size": 17,
        "model": {"name": "resnet8", "num_classes": 10, "width": 4},
        "data": data,
    }
    return _joined(recipe, *tables, fields)


def _joined(recipe: dict[str, Any], *tables: Mapping[str, Any]) -> dict[str, Any]:
    """Later tables win; `lr` is joined key by key, `model` is replaced."""
    for table in tables:
        for key, value in table.items():
            recipe[key] = {**recipe.get(key, {}), **value} if key in ("lr", "data") else value
    return recipe


RECIPES: dict[str, dict[str, Any]] = {
    "digits-sgd-float32-short": digits(SGD),
    "digits-adamw-bfloat16-clip-ema-fuse-carry": digits(
        ADAMW, clip_grad_norm=0.5, ema=0.9, last_batch="carry", compute={"precision": "bf16", "fuse": 2}
    ),
    "digits-lars-float32-channels-last-drop": digits(LARS, last_batch="drop", compute={"channels_last": True}),
    "digits-dropout-adamw-float32-ema": digits(ADAMW, model=MLP, ema=0.95, lr=COSINE),
    "digits-sgd-bfloat16-clip-fuse-short": digits(SGD, clip_grad_norm=1.0, compute={"precision": "bf16", "fuse": 2}),
    "cifar-sgd-float32-augmented-smoothed-channels-last-ema": cifar(
        SGD, ema=0.9, lr=COSINE, loss={"label_smoothing": 0.1}, compute={"channels_last": True}
    ),
    "cifar-adamw-bfloat16-clip-fuse-channels-last": cifar(
        ADAMW, clip_grad_norm=1.0, compute={"precision": "bf16", "channels_last": True, "fuse": 2}
    ),
    "cifar-lars-bfloat16-carry": cifar(LARS, last_batch="carry", lr=COSINE, compute={"precision": "bf16"}),
    "cifar-own-net-dropout-cutout-adamw-drop": cifar(ADAMW, train=CUT, model=OWN, last_batch="drop"),
    "cifar-own-net-dropout-sgd-bfloat16-clip-fuse-ema": cifar(
        SGD, model=OWN, ema=0.99, clip_grad_norm=2.0, compute={"precision": "bf16", "fuse": 2}
    ),
}


def by_recipe(name: str, out: Path, world: World | None, data: Path) -> Outcome:
    """Trains one of `RECIPES`."""
    records: list[Record] = []
    recipe = squall.Recipe(name=name, **RECIPES[name])
    task = cifar_task(recipe, data) if name.startswith("cifar") else None
    result = squall.train(task, recipe, out=out, world=world, sinks=(records.append,), data_root=data)
    return outcome_of(result, records)


def cifar_task(recipe: squall.Recipe, data: Path) -> squall.Task:
    """What a recipe on CIFAR-10 composes, on its slice: unpacking the whole set would take longer than all cases."""
    assert recipe.data is not None
    assert recipe.model is not None
    step, loss = loss_of(recipe.loss)
    total = recipe.data.train_limit + recipe.data.test_limit
    with lzma.open(data / "cifar10" / "data_batch_1.bin.xz") as file:
        records = np.frombuffer(file.read(3073 * total), dtype=np.uint8).reshape(total, 3073)
    images = np.ascontiguousarray(records[:, 1:].reshape(total, 3, 32, 32).transpose(0, 2, 3, 1))
    labels = records[:, 0].astype(np.int64)

    def part(rows: slice, ops: Any) -> ImageSet:
        return ImageSet.of(images[rows], labels[rows], compile_ops(ops, (32, 32, 3)), (), "slice of cifar10")

    cut = recipe.data.train_limit
    train, test = part(slice(0, cut), recipe.data.train), part(slice(cut, total), recipe.data.val)
    return squall.Task(model=partial(model_of, recipe.model), train=train, test=test, step=step, loss=loss)


def outcome_of(result: squall.Result, records: list[Record]) -> Outcome:
    """What of a result must be equal; the files of the run folder where this rank wrote them."""
    files: dict[str, str] = {}
    folder = result.folder
    if folder is not None and folder.is_dir():
        found = sorted(folder.glob("*.safetensors"))
        files = {path.name: weights.sha256(load_file(path).items()) for path in found}  # buffers too
    losses = tuple(record.loss for record in records if isinstance(record, Stepped))
    averages = {"train": dict(result.train), "val": dict(result.val), "test": dict(result.test)}
    return Outcome(
        weights=result.values["weights_sha256"],
        ledger=json.dumps(result.values["ledger"], sort_keys=True),
        averages=json.dumps(averages, sort_keys=True),
        losses=losses,
        files=tuple(files.items()),
    )


def run_cases(cases: Mapping[str, Case], data: Path, out: Path, world: World | None = None) -> dict[str, Any]:
    """All cases one after the other on this rank: outcomes by name; after an error its text for all that is left.

    (The other ranks are then out of step, so nothing after it means anything.)
    """
    found: dict[str, Any] = {}
    for name, case in cases.items():
        rank = world.rank if world else 0
        try:
            found[name] = case(out / name if rank == 0 else out / "never" / name, world, data)
        except Exception:
            text = traceback.format_exc()
            return {**found, **{left: f"after {name} on rank {rank}:\n{text}" for left in cases if left not in found}}
    return found


@cache
def outcomes(cases: Callable[[], dict[str, Case]], processes: int, data: Path) -> list[dict[str, Any]]:
    """The outcomes of all cases on every rank of a job; the reference of one process is computed in place."""
    with tempfile.TemporaryDirectory() as folder:
        if processes == 1:
            return [run_cases(cases(), data, Path(folder))]
        try:
            return run_job(run_named, processes, cases, data, Path(folder))
        except AssertionError as error:
            return [dict.fromkeys(cases(), str(error))]


def run_named(cases: Callable[[], dict[str, Case]], data: Path, out: Path, world: World) -> dict[str, Any]:
    """What a rank of the job runs (a function travels, a case need not)."""
    return run_cases(cases(), data, out, world)


def assert_equal(cases: Callable[[], dict[str, Case]], name: str, processes: int, data: Path) -> Outcome:
    """Checks one case on `processes` ranks against one process; returns the reference."""
    expected = outcomes(cases, 1, data)[0][name]
    assert isinstance(expected, Outcome), expected
    ranks = [rank[name] for rank in outcomes(cases, processes, data)]
    for rank, found in enumerate(ranks):
        assert isinstance(found, Outcome), found
        assert found.averages == expected.averages, f"rank {rank}"
        assert found.ledger == expected.ledger, f"rank {rank}"
        assert found.weights == expected.weights, f"rank {rank}"
    assert ranks[0].losses == expected.losses
    assert ranks[0].files == expected.files
    return expected
