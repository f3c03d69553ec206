"""The user's optimiser in a run: its rate is set before each update, and each update is watched.

Only hooks of torch's own are used: the optimiser stays the user's object, and `optimizer.step()` the user's call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from squall.optim.groups import set_rate
from squall.optim.lr import Rate
from squall.run.guards import check_gradients

if TYPE_CHECKING:
    from squall.run.run import Run


class Updates:
    """Counts updates, and refuses those that would apply nothing.

    Arguments:
        run: tells which step is open; its averages and clock hear of each update.
        optimizer: the user's.
        rate: to be set before each update; None: the groups' own rates stay.
    """

    def __init__(self, run: Run, optimizer: torch.optim.Optimizer, rate: Rate | None) -> None:
        self._run, self._optimizer, self._rate = run, optimizer, rate
        self.count = 0
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    def set_rate(self, progress: float) -> float | None:
        """Sets the rate for an update; gives it, or the first group's own.

        Arguments:
            progress: epochs done before it.
        """
        groups = self._optimizer.param_groups
        if self._rate is None:
            return float(groups[0]["lr"]) if groups else None
        spec = self._run.spec
        rate = self._rate.at(progress, global_batch_size=spec.global_batch_size, epochs=spec.epochs)
        set_rate(self._optimizer, rate)
        return rate

    def remove(self) -> None:
        """Takes the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _before(self, *_: Any) -> None:
        step, stepper = self._run.now, self._run.stepper
        if step is None or stepper is None:
            return
        step.require_complete("optimizer.step()")
        if not stepper.scale.active:  # a step of fp16 that overflowed has no gradients, and means it
            check_gradients(step.index, stepper.parameters)

    def _after(self, *_: Any) -> None:
        self.count += 1
        run, step = self._run, self._run.now
        if step is None:
            return
        if run.ema is not None:
            run.ema.update()
        run.book.note_update(step)
        run.steps_done = step.index + 1
