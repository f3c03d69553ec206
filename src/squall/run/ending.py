"""The end of a run that came to one: the ledger closes, the ranks hold the same weights, and these are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from squall.errors import RunError
from squall.model import weights
from squall.run.collect import differing, on_main
from squall.run.folder import EMA_WEIGHTS, RESULT, WEIGHTS, write_json
from squall.run.guards import check_left
from squall.run.leaving import how_to_go_on
from squall.run.ledger import Ledger

if TYPE_CHECKING:
    from squall.run.run import Run
    from squall.run.stepper import Stepper


def left_early(run: Run, stepper: Stepper) -> str:
    """Advice where the loop was left before its end.

    Raises:
        RunError: in the middle of a step.
    """
    assert stepper.order is not None
    if run.now is not None and stepper.read_samples and stepper.where[0] == run.now.index:
        check_left(run.now.index, run.now.complete, run.steps_done > run.now.index)
    return f"run.steps was left after {run.steps_done} of {stepper.order.num_steps} steps; a loop over it does all"


def settled(run: Run, ledger: Ledger) -> dict[str, Any]:
    """The proofs: the weights' hash, the same on every rank, and the ledger.

    Raises:
        RunError: a missed or doubled sample; ranks with different weights.
    """
    found = ledger.settle(run.world, run.steps_done)
    sha256 = weights.sha256(run.model.named_parameters())
    if strayed := differing(run.world, sha256):
        raise RunError(
            f"rank {strayed[0]} ends with other weights than rank 0",
            [("rule", "every rank applies the same updates to the same weights")],
        )
    return {"weights_sha256": sha256, "ledger": found.as_dict()}


def write_weights(run: Run, path: Path | None, sha256: str) -> None:
    """Writes the final weights, and the averaged ones; and what a full disk has kept waiting of the records.

    Arguments:
        path: of the run's folder, on the rank that writes.

    Raises:
        RunError: the disk does not take them; on every rank.
    """

    def write() -> None:
        if path is None:
            return
        with _writing("the weights", path):
            run.book.flush()
            weights.save(path / WEIGHTS, _tensors(run.model), {"squall": "weights", "sha256": sha256})
            if run.ema is not None:
                with run.ema.swapped():
                    weights.save(path / EMA_WEIGHTS, _tensors(run.model), {"squall": "ema"})

    on_main(run.world, write)


def write_result(path: Path, values: Mapping[str, Any]) -> None:
    """Writes how the run ended.

    Raises:
        RunError: the disk does not take it.
    """
    with _writing("the result", path):
        write_json(path / RESULT, values)


@contextmanager
def _writing(what: str, path: Path) -> Iterator[None]:
    """What the system says of the disk, with how to go on: the run can be resumed."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{what} cannot be written to {path}",
            [("found", getattr(error, "strerror", None) or str(error)), ("to do", "make room, then:")],
            how_to_go_on(path),
        ) from error


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dictionary without what modules add to it that is no tensor (`get_extra_state`)."""
    return {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
