"""What a validation set must be that was held out of the training set."""

from __future__ import annotations

from squall.data.augmented import augmented
from squall.data.subset import Subset
from squall.errors import InputError
from squall.recipe import Recipe
from squall.task import Task


def check_held_out(task: Task, recipe: Recipe) -> None:
    """Refuses to validate on augmented samples: nobody but its author can turn the augmentation of an own set off.

    Raises:
        InputError: the samples that `data.val_samples` held out of it differ from epoch to epoch.
    """
    data, held = recipe.data, task.val
    if data is None or not data.val_samples or ":" not in data.name or not isinstance(held, Subset):
        return
    index = augmented(held, recipe.seed, task.collate, "val")
    if index is not None:
        raise InputError(
            f"data.val_samples={data.val_samples} would measure on augmented samples",
            [
                ("found", f"sample {held.ids[index]} of the training set is another one in each epoch"),
                ("rule", "validation reads samples as they are, and a set of your own augments them itself"),
                ("to do", f"data.val_samples=0, and a validation set from {data.name}: (train, val, test)"),
            ],
        )
