"""Trainings whose bits must not depend on the number of processes: a covering selection, and how one is run.

Every property of the list (precision, rule, normalisation, dropout, clipping, EMA, augmentation, last minibatch, fuse,
memory format) stands in at least two cases, every pair that could interact in one. Twelve virtual workers, so that
six processes have a pass each even where two workers share one; the short last minibatches have fewer.
"""

from __future__ import annotations

import hashlib
import random
import tempfile
import traceback
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import squall
from squall.recipe import Recipe
from squall.records import Record, Stepped
from tests.jobs import run_job
from tests.models import conv_with_dropout

SGD = {"optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}, "lr": {"base": 0.05}}
ADAMW = {"optimizer": {"name": "adamw", "weight_decay": 0.05}, "lr": {"base": 2e-3}}
LARS = {"optimizer": {"name": "lars", "momentum": 0.9, "weight_decay": 1e-4}, "lr": {"base": 1.0}}
COSINE = {"schedule": "cosine", "warmup_epochs": 1, "warmup_from": 0.01}
CROP = [{"random_crop": 32, "padding": 4}, {"horizontal_flip": 0.5}, {"normalize": "cifar10"}]
CUT = [{"horizontal_flip": 0.5}, {"normalize": "cifar10"}, {"cutout": 8}]


def digits(*tables: Mapping[str, Any], model: Mapping[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """300 training digits in minibatches of 96 = 12 x 8 (the last: 12), evaluated on 110 in batches of 25."""
    plain = [{"normalize": "digits"}]
    recipe = {
        "epochs": 2,
        "global_batch_size": 96,
        "worker_batch_size": 8,
        "eval_batch_size": 25,
        "model": model or {"name": "resnet8", "num_classes": 10, "in_channels": 1, "width": 4},
        "data": {"name": "digits", "train": plain, "val": plain, "train_limit": 300, "test_limit": 110},
    }
    return _joined(recipe, *tables, fields)


def cifar(*tables: Mapping[str, Any], train: Any = CROP, **fields: Any) -> dict[str, Any]:
    """200 photographs of CIFAR-10 in minibatches of 72 = 12 x 6 (the last: 56), evaluated on 60 in batches of 17."""
    plain = [{"normalize": "cifar10"}]
    recipe = {
        "epochs": 2,
        "global_batch_size": 72,
        "worker_batch_size": 6,
        "eval_batch_size": 17,
        "model": {"name": "resnet8", "num_classes": 10, "width": 4},
        "data": {
            "name": "cifar10",
            "root": "cifar10",
            "train": train,
            "val": plain,
            "train_limit": 200,
            "test_limit": 60,
        },
    }
    return _joined(recipe, *tables, fields)


def _joined(recipe: dict[str, Any], *tables: Mapping[str, Any]) -> dict[str, Any]:
    for table in tables:
        for key, value in table.items():
            inner = recipe.get(key)
            recipe[key] = {**inner, **value} if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return recipe


OWN = {"name": "tests.models:conv_with_dropout"}
MLP = {"name": "mlp", "in_features": 64, "hidden": [32], "num_classes": 10, "dropout": 0.3}

RECIPES: dict[str, dict[str, Any]] = {
    "digits-sgd-float32-short": digits(SGD),
    "digits-adamw-bfloat16-clip-ema-fuse-carry": digits(
        ADAMW, clip_grad_norm=0.5, ema=0.9, last_batch="carry", compute={"precision": "bf16", "fuse": 2}
    ),
    "digits-lars-float32-channels-last-drop": digits(LARS, last_batch="drop", compute={"channels_last": True}),
    "digits-dropout-adamw-float32-ema": digits(ADAMW, model=MLP, ema=0.95, lr=COSINE),
    "digits-sgd-bfloat16-fuse-short-clip": digits(SGD, clip_grad_norm=1.0, compute={"precision": "bf16", "fuse": 2}),
    "digits-fast-is-alike-on-one": digits(SGD, clip_grad_norm=1.0),
    "cifar-sgd-float32-augmented-channels-last-ema": cifar(
        SGD, ema=0.9, lr=COSINE, loss={"label_smoothing": 0.1}, compute={"channels_last": True}
    ),
    "cifar-adamw-bfloat16-fuse-clip-channels-last": cifar(
        ADAMW, clip_grad_norm=1.0, compute={"precision": "bf16", "channels_last": True, "fuse": 2}
    ),
    "cifar-lars-bfloat16-carry": cifar(LARS, last_batch="carry", lr=COSINE, compute={"precision": "bf16"}),
    "cifar-own-net-dropout-cutout-adamw-drop": cifar(ADAMW, train=CUT, model=OWN, last_batch="drop"),
    "cifar-own-net-dropout-sgd-bfloat16-fuse-ema": cifar(
        SGD, model=OWN, ema=0.99, clip_grad_norm=2.0, compute={"precision": "bf16", "fuse": 2}
    ),
}
del RECIPES["digits-fast-is-alike-on-one"]
