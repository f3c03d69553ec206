"""What a recipe says of a run's numbers."""

from __future__ import annotations

from typing import Any

from squall.recipe import Recipe


def run_spec(recipe: Recipe) -> dict[str, Any]:
    """The fields of `squall.Run` that a recipe fixes."""
    compute = recipe.compute
    return {
        "epochs": recipe.epochs,
        "global_batch_size": recipe.update_size,
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
