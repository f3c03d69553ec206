"""From a recipe's tables to a task: the network, the loss and the data they name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from squall import model as models
from squall.cluster.world import World
from squall.data import sources
from squall.data.augment import compile_ops
from squall.data.images import ImageSet
from squall.data.photos import Photos
from squall.data.shared import once_per_machine
from squall.data.subset import hold_out, some_of, subset
from squall.data.usercode import user_code_error
from squall.errors import InputError, SquallError
from squall.metrics import Loss, mean
from squall.model import weights
from squall.recipe import DataSpec, LossSpec, ModelSpec, Recipe
from squall.references import NoModuleError, find, is_reference
from squall.task import Task


def compose(recipe: Recipe, world: World, data_root: Path) -> Task:
    """Builds the task that a recipe describes.

    Arguments:
        data_root: the folder that holds the data sets.

    Raises:
        InputError: a set, network, loss or weights file that is not there or not whole.
    """
    if recipe.model is None or recipe.data is None:
        missing = "model" if recipe.model is None else "data"
        raise InputError(
            f"the recipe {recipe.name} has no {missing}", [("to do", f"add a [{missing}] table, or give a task")]
        )
    train, val, test = data_of(recipe.data, world, data_root, recipe.seed)
    step, loss = loss_of(recipe.loss, recipe.loss_over)
    return Task(
        model=partial(model_of, recipe.model), train=train, val=val, test=test, step=step, loss=loss, name=recipe.name
    )


def model_of(spec: ModelSpec) -> nn.Module:
    """Builds the network, loads its weights, freezes what the recipe freezes."""
    model = models.build(spec.name, spec.arguments)
    if spec.weights is not None:
        weights.load_into(model, Path(spec.weights), skip=spec.weights_skip)
    if spec.freeze:
        weights.freeze(model, spec.freeze)
    return model


def loss_of(
    spec: LossSpec, loss_over: str = "sample"
) -> tuple[Callable[[nn.Module, Any], Any] | None, Callable[[Any, Any], torch.Tensor] | None]:
    """The step, or the loss function to be probed, that a recipe's `loss` names; over a worker it is a mean."""
    if spec.name == "cross_entropy":
        return partial(_cross_entropy, spec.label_smoothing, "mean" if loss_over == "worker" else "sum"), None
    return None, attribute(spec.name, "loss.name")


def _cross_entropy(label_smoothing: float, reduction: str, model: nn.Module, batch: Any) -> tuple[Loss, dict[str, Any]]:
    images, labels = batch
    logits = model(images)
    total = F.cross_entropy(logits, labels, reduction=reduction, label_smoothing=label_smoothing)
    return Loss(total, len(labels)), {"accuracy": mean(logits.argmax(1) == labels)}


def data_of(spec: DataSpec, world: World, data_root: Path, seed: int) -> tuple[Any, Any, Any]:
    """The training, validation and test set; a set in memory is loaded once per machine."""
    if ":" in spec.name:
        train, val, test = _own_sets(spec.name)
    else:
        folder = sources.set_folder(data_root, spec.root, spec.name)
        train, test = (_split(spec, folder, split, world) for split in ("train", "test"))
        val = None
    if spec.train_limit is not None and spec.train_limit < len(train):
        train = subset(train, some_of(len(train), spec.train_limit))
    if test is not None and spec.test_limit is not None and spec.test_limit < len(test):
        test = subset(test, some_of(len(test), spec.test_limit))
    if spec.val_samples:
        if spec.val_samples >= len(train):
            raise InputError(
                f"data.val_samples={spec.val_samples} leaves nothing of {len(train)} training samples to train on"
            )
        kept, held = hold_out(len(train), spec.val_samples, seed)
        plain = (
            subset(_split(spec, sources.set_folder(data_root, spec.root, spec.name), "held", world), held)
            if ":" not in spec.name
            else None
        )
        train, val = subset(train, kept), plain if plain is not None else subset(train, held)
    return train, val, test


def _split(spec: DataSpec, folder: Path | None, split: str, world: World) -> Any:
    """One split of a shipped kind of set; "held" is the training set with the operations of evaluation."""
    part: Literal["train", "test"] = "test" if split == "test" else "train"
    ops, where = (spec.train, "data.train") if split == "train" else (spec.val, "data.val")
    if spec.name == "imagefolder":
        index = sources.load(spec.name, folder, part)
        assert isinstance(index, sources.FolderIndex)
        return Photos(index, ops, spec.on_error, where)
    arrays = once_per_machine(lambda: _arrays(spec.name, folder, part), world, world.fresh(split))
    assert isinstance(arrays, sources.ImageArrays)
    height, width, channels = arrays.images.shape[1:]
    transform = compile_ops(ops, (height, width, channels), where=where)
    return ImageSet.of(arrays.images, arrays.labels, transform, arrays.classes, arrays.name)


def _arrays(name: str, folder: Path | None, split: Any) -> Any:
    return sources.load(name, folder, split)


def _own_sets(name: str) -> tuple[Any, Any, Any]:
    function = attribute(name, "data.name")
    if not callable(function):
        raise InputError(
            f"data.name={name} is a {type(function).__name__}", [("rule", "it names a function that returns the sets")]
        )
    try:
        made = function()
    except SquallError:
        raise
    except Exception as error:
        raise user_code_error(error, f"data.name={name}") from error
    if isinstance(made, Mapping):
        made = (made.get("train"), made.get("val"), made.get("test"))
    if not isinstance(made, tuple) or not 1 <= len(made) <= 3 or made[0] is None:
        raise InputError(
            f"data.name={name} gives a {type(made).__name__}",
            [
                (
                    "rule",
                    "the function returns (train, val, test), the last two may be None, or a mapping with these keys",
                )
            ],
        )
    train, val, test = (*made, None, None)[:3]
    return train, val, test


def attribute(name: str, field: str) -> Any:
    """The object that "package.module:name" names.

    Raises:
        InputError: no such module or name in it.
        UserCodeError: the module raised an exception while it was imported.
    """
    if not is_reference(name):
        raise InputError(f"{field}={name} is not known", [("to do", 'write "package.module:function" for your own')])
    try:
        module, found = find(name)
    except NoModuleError as error:
        raise InputError(
            f"{field}={name}: {error}", [("to do", "install it, or run where it can be imported")]
        ) from error
    except SquallError:
        raise
    except Exception as error:
        raise user_code_error(error, f"the import of {name.partition(':')[0]} ({field}={name})") from error
    if found is None:
        raise InputError(f"{field}={name}: {module.__name__} has no {name.partition(':')[2]}")
    return found
