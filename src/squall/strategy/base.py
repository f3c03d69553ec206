"""What every strategy is: a function that trains a model in a run.

Adding one means one file here, one line in `STRATEGIES`, and with it one row of the contract suite.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from squall.loop import Job
from squall.run import Run


class Strategy(Protocol):
    """Trains `model` on `job` within `run`; returns when all epochs are done."""

    def __call__(self, run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, job: Job) -> None:
        """Trains to the end of the run."""
