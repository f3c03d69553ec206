"""Synchronous SGD: all workers compute the gradient of one minibatch, every process applies the same update."""

from __future__ import annotations

import torch
from torch import nn

from squall.loop import Job, minibatch
from squall.run import Run


def sync(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, job: Job) -> None:
    """Goyal et al. 2017, section 2: each virtual worker's loss sums into one gradient over kn samples."""
    minibatch(run, model, optimizer, job)
