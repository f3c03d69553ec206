"""One update, seen from the loop: an iterator over this process's passes, and what may be done once they are over.

for step in run.steps(data):        the run opens the step: rate set, gradients taken away
    for batch in step:              a pass: buffers as at the step's start, generator seeded, `fuse` workers' samples
        step.backward(loss)         in the last pass, finished buckets already travel
                                    the inner loop's end waits for the sums: `.grad` is the mean's gradient
    optimizer.step()
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from squall.data.order import StepPlan
from squall.errors import RunError
from squall.metrics import Mean, Metric
from squall.run.guards import check_loss, check_training_mode
from squall.run.stepper import Clock
from squall.run.sums import StepSums

if TYPE_CHECKING:
    from squall.run.stepper import Stepper


class Step:
    """One update of the run.

    Attributes:
        index: number of the update, from 0.
        epoch: its epoch, from 0.
        ends_epoch: whether it is its epoch's last.
        num_samples: samples of the minibatch (kn, or r in an epoch's short last step).
        lr: the learning rate in force (None when `run.setup` got no schedule).
    """

    def __init__(
        self, stepper: Stepper, plan: StepPlan, lr: float | None, diverged: Callable[[Step, float], RunError]
    ) -> None:
        self._stepper, self._plan, self._diverged = stepper, plan, diverged
        self.index, self.epoch, self.ends_epoch = plan.index, plan.epoch, plan.ends_epoch
        self.num_samples = plan.num_samples
        self.lr = lr
        self.seconds = 0.0  # when its update was applied, since the run's start
        self.seconds_whole = 0.0  # from its opening to its update
        self.sums: StepSums | None = None
        self.clock = Clock()
        self._open = -1
        self._done = 0
        self._backward_done = True
        self.complete = False

    @property
    def plan(self) -> StepPlan:
        """Who computes what."""
        return self._plan

    def __iter__(self) -> Iterator[Any]:
        """This process's passes: batches as the data set collates them, on the run's device."""
        if self._done or self.complete:
            raise RunError("a step was iterated twice", [("rule", "loop over a step once: `for batch in step:`")])
        leaves = self._stepper.open_step(self._plan)
        for leaf in leaves:
            batch = self._stepper.open_pass(self._plan, leaf)
            self._open, self._backward_done = leaf, False
            yield batch
            if not self._backward_done:
                raise RunError(
                    f"step {self.index}: a batch was read but step.backward was not called",
                    [("rule", "each batch of a step needs one step.backward(loss)")],
                )
            self._done += 1
        self.sums = self._stepper.close_step()
        self.clock = replace(self._stepper.clock)
        self.complete = True
        if not self._stepper.late:
            self.check_finite()

    def check_finite(self) -> None:
        """Looks at the loss of the whole minibatch.

        Raises:
            DivergedError: it is not finite.
            RunError: the losses count nothing.
        """
        assert self.sums is not None
        if self.sums.count <= 0:
            raise RunError(
                f"the losses of step {self.index} count {self.sums.count:g} samples",
                [("rule", "the count must be positive")],
            )
        if not math.isfinite(self.sums.loss):
            raise self._diverged(self, self.sums.loss)

    def spent(self, rank: int) -> dict[str, float]:
        """Where this process's time went between the step's opening and its update, seconds by name.

        Ranks leave a step together, so that the slowest's head start tells waiting from travelling.
        """
        assert self.sums is not None
        busy = self.sums.busy
        wait = min(max(busy) - busy[rank], self.clock.blocked) if busy else 0.0
        travel = self.clock.blocked - wait
        return {
            "data": self.clock.data,
            "compute": max(self.seconds_whole - self.clock.data - self.clock.blocked, 0.0),
            "communication": travel,
            "wait": wait,
        }

    def backward(
        self,
        loss: torch.Tensor,
        *,
        count: int | torch.Tensor | None = None,
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        """Backward pass of this batch's loss.

        Arguments:
            loss: scalar, the SUM over the batch's samples (with ``loss_over="worker"``: the mean over the worker).
            count: what it sums over when that is not samples (tokens, boxes); the minibatch's loss is divided by the
                count of all processes together.
            metrics: means (`squall.mean`) to average over the minibatch.

        Raises:
            RunError: a mean where a sum is asked for, a model in evaluation mode, a second call in one pass.
        """
        if self._open < 0 or self._backward_done:
            found = "outside `for batch in step:`" if self._open < 0 or self.complete else "twice for one batch"
            raise RunError(
                f"step.backward was called {found}",
                [("rule", "once for each batch of a step; several losses are added up first")],
            )
        num_samples = self._stepper.read_samples
        spec = self._stepper.spec
        if spec.loss_over == "sample" and self.index == self._stepper.first_step:
            check_loss(loss, num_samples if count is None else int(count))
        elif not isinstance(loss, torch.Tensor) or not loss.requires_grad:
            check_loss(loss, 1)
        check_training_mode(self._stepper.model)
        if spec.loss_over == "worker":
            loss, count = loss * num_samples, None
        means = {name: metric for name, metric in (metrics or {}).items() if isinstance(metric, Mean)}
        self._backward_done = True
        self._stepper.backward(loss, num_samples if count is None else count, self._stepper.read_samples, means)

    def clip_grad_norm_(self, max_norm: float) -> torch.Tensor:
        """Scales the gradient so that its norm over all parameters is at most `max_norm`; acts after the reduction.

        Returns:
            The norm before, a scalar tensor.
        """
        self.require_complete("step.clip_grad_norm_")
        return torch.nn.utils.clip_grad_norm_(self._stepper.parameters, max_norm)

    @property
    def loss(self) -> float:
        """Mean loss over the minibatch's samples, of all processes; known once the inner loop is over."""
        self.require_complete("step.loss")
        assert self.sums is not None
        return self.sums.loss / self.sums.count

    def require_complete(self, what: str) -> None:
        """Refuses to go on while passes are missing.

        Raises:
            RunError: the inner loop was left early.
        """
        if not self.complete:
            raise RunError(
                f"{what} was called in step {self.index} before all of its batches were computed",
                [
                    ("found", f"{self._done} of {self._stepper.num_passes} passes of this process"),
                    ("rule", "run `for batch in step:` to its end: leaving it early would lose samples"),
                ],
            )
