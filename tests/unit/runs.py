"""A small training loop of one's own, for tests of what `squall.Run` accepts and refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import squall
from squall.run import Step

CLASSES = 3
FIELDS: dict[str, Any] = {"epochs": 1, "global_batch_size": 8, "worker_batch_size": 4}

LossOf = Callable[[nn.Module, torch.Tensor, torch.Tensor], Any]


def make_data(num_samples: int = 16, dtype: torch.dtype = torch.float32) -> list[tuple[torch.Tensor, int]]:
    """Rows of five numbers in three classes."""
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(num_samples, 5, generator=generator, dtype=torch.float64).to(dtype)
    return [(row, index % CLASSES) for index, row in enumerate(rows)]


def make_model(*layers: nn.Module) -> nn.Module:
    """The given layers, else a linear one, with fixed first weights."""
    torch.manual_seed(2)
    for layer in layers:
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    return nn.Sequential(*layers) if layers else nn.Linear(5, CLASSES)


def summed(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The loss as it is asked for."""
    return F.cross_entropy(model(inputs), targets, reduction="sum")


def start(model: nn.Module, optimizer: torch.optim.Optimizer | None = None, **fields: Any) -> squall.Run:
    """A run that is set up and writes nothing."""
    run = squall.Run(fields.pop("out", None), **{**FIELDS, **fields})
    try:
        run.setup(model, optimizer or torch.optim.SGD(model.parameters(), lr=0.1))
    except BaseException:
        run.close()
        raise
    return run


def train(
    model: nn.Module,
    loss_of: LossOf = summed,
    data: Any = None,
    before_update: Callable[[Step], Any] = lambda step: None,
    optimizer: torch.optim.Optimizer | None = None,
    **fields: Any,
) -> squall.Result:
    """Trains one epoch; whatever goes wrong, the run is closed."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    run = start(model, optimizer, **fields)
    try:
        for step in run.steps(make_data() if data is None else data):
            for inputs, targets in step:
                step.backward(loss_of(model, inputs, targets))
            before_update(step)
            optimizer.step()
            optimizer.zero_grad()
        return run.finish()
    finally:
        run.close()
