"""The minibatch loop: synchronous SGD as Goyal et al. 2017 define it, in the calls that any user's loop makes.

Everything that makes it large-minibatch training (virtual workers, the sum over kn, the rate, the reduction, the
ledger) happens inside these calls; whoever wants another loop copies this one (`squall recipes NAME --as-script`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from squall.metrics import Loss, Metrics
from squall.run import Run


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the loop trains on.

    Attributes:
        step: (model, batch) -> (loss as sum and count, metrics).
        measure: the step of evaluation, where that is another one (`loss_over="worker"`).
        train, val, test: data sets; the last two may be None.
        collate, num_workers: how batches are read.
        clip_grad_norm: most that the gradient's norm may be, after the reduction; None: no clipping.
    """

    step: Callable[[nn.Module, Any], tuple[Loss, Metrics]]
    train: Any
    val: Any = None
    test: Any = None
    collate: Callable[[list[Any]], Any] | None = None
    num_workers: int = 0
    measure: Callable[[nn.Module, Any], tuple[Loss, Metrics]] | None = None
    clip_grad_norm: float | None = None


def minibatch(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, job: Job) -> None:
    """Trains over all epochs of the run; evaluates at the end of each."""

    def measure(data: Any, name: str) -> dict[str, float]:
        if data is None:
            return {}
        step = job.measure or job.step
        return run.averages(model, data, step, collate=job.collate, num_workers=job.num_workers, name=name)

    for step in run.steps(job.train, collate=job.collate, num_workers=job.num_workers):
        for batch in step:
            loss, metrics = job.step(model, batch)
            step.backward(loss.sum, count=loss.count, metrics=metrics)
        if job.clip_grad_norm is not None:
            step.clip_grad_norm_(job.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        if step.ends_epoch:
            run.log(val=measure(job.val, "val"), test=measure(job.test, "test"))
