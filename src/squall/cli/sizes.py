"""How many training samples a target has, found out as cheaply as possible and without torch.

Before anything is launched this says whether there are passes for all processes, and how many steps an epoch has.
"""

from __future__ import annotations

from pathlib import Path

from squall.cli.target import Target
from squall.data import packed, sources
from squall.data.order import Order
from squall.errors import InputError
from squall.recipe import DataSpec, Recipe

_PUBLISHED = {"imagenet": 1_281_167, "mnist": 60_000, "fashion-mnist": 60_000}
_FIXED = {"digits": 1_437, "cifar10": 50_000}


def check_files(target: Target, data_root: Path) -> None:
    """Makes sure that the files a recipe names are there, and the data set whole, as far as a quick look shows.

    Raises:
        InputError: something is missing or damaged; says what repairs it.
    """
    weights = target.recipe.model.weights if target.recipe.model is not None and target.task is None else None
    if weights is not None and not Path(weights).exists():
        raise InputError(
            f"{weights} does not exist",
            [("found", f"model.weights={weights}"), ("to do", "give a run's folder, or a .safetensors file")],
        )
    spec = target.recipe.data
    if target.task is None and spec is not None and ":" not in spec.name:
        sources.check(spec.name, sources.set_folder(data_root, spec.root, spec.name))


def num_train(target: Target, data_root: Path, *, scan: bool = False) -> int | None:
    """Samples that a run trains on, without those held out; None where finding out is not cheap.

    Arguments:
        scan: count the files of a folder of photographs too, and where a well-known set is missing take its published
            size: for `squall explain`.
    """
    spec = target.recipe.data
    if target.task is not None:
        return len(target.task.train)
    total = _total(spec, data_root, scan) if spec is not None else None
    if spec is None or total is None:
        return None
    return min(total, spec.train_limit or total) - spec.val_samples


def order_of(recipe: Recipe, num_samples: int) -> Order:
    """The order of a recipe on so many training samples."""
    return Order(
        num_samples=num_samples,
        global_batch_size=recipe.update_size,
        worker_batch_size=recipe.worker_batch_size,
        epochs=recipe.epochs,
        seed=recipe.seed,
        fuse=recipe.compute.fuse,
        last_batch=recipe.last_batch,
    )


def num_passes(recipe: Recipe, num_samples: int | None) -> int:
    """Passes of a full step: the most processes that can share it."""
    full = recipe.update_size
    return order_of(recipe, full if num_samples is None else max(num_samples, 1)).step(0).num_passes


def _total(spec: DataSpec, data_root: Path, scan: bool) -> int | None:
    if spec.name in _FIXED:
        return _FIXED[spec.name]
    folder = sources.set_folder(data_root, spec.root, spec.name)
    if folder is None or ":" in spec.name:
        return None
    labels = packed.find(folder, "train-labels-idx1-ubyte") if spec.name == "idx" else None
    if labels is not None:
        return int.from_bytes(bytes(packed.unpack(labels, 8).data)[4:8], "big")
    if scan and spec.name == "imagefolder" and folder.is_dir():
        return len(sources.load(spec.name, folder, "train"))
    return _PUBLISHED.get(folder.name) if scan else None
