"""Exact evaluation on all processes: nothing padded, nothing counted twice, the same bits on any number of processes.

The set is cut once into batches of the recipe's `eval_batch_size`, since an output's last bits depend on the batch it
sits in. Batches are dealt to ranks whole; sums are formed per batch in float64 and added in batch order; gathered
values are joined in data set order. (Peers pad the last batch or drop it: pytorch#25162, examples#980.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from squall.cluster.world import World
from squall.data.batches import read
from squall.data.order import Draw
from squall.errors import RunError
from squall.metrics import Gather, Loss, Mean, Metrics
from squall.rng import Stream, mix
from squall.run.collect import join_blocks, say
from squall.run.spec import RunSpec
from squall.run.stepper import finisher


class PerSample:
    """One value (or row of values) per sample of a set, in data set order."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def mean(self) -> float:
        """Mean over all samples, in float64."""
        return float(self.values.double().mean())

    def sum(self) -> float:
        """Sum over all samples, in float64."""
        return float(self.values.double().sum())


def per_sample(
    spec: RunSpec,
    world: World,
    model: nn.Module,
    data: Any,
    measure: Callable[[Any, Any], torch.Tensor],
    **reading: Any,
) -> PerSample:
    """Applies `measure(outputs, targets)` to each batch of (inputs, targets); joins the per-sample values."""
    blocks: list[torch.Tensor] = []
    with evaluating(model):
        for draw, batch in _batches(spec, world, data, **reading):
            inputs, targets = batch
            values = measure(model(inputs), targets)
            if not isinstance(values, torch.Tensor) or values.ndim == 0 or len(values) != len(draw):
                found = f"shape {tuple(values.shape)}" if isinstance(values, torch.Tensor) else type(values).__name__
                raise RunError(
                    "the measure of run.evaluate must give one value per sample",
                    [
                        ("found", f"{found} for {len(draw)} samples"),
                        ("to do", "lambda out, labels: out.argmax(1) == labels"),
                    ],
                )
            blocks.append(values)
    rows = [_rows(len(data), spec.eval_batch_size, world.size, rank) for rank in range(world.size)]
    return PerSample(join_blocks(world, torch.cat(blocks) if blocks else None, rows))


def averages(
    spec: RunSpec,
    world: World,
    model: nn.Module,
    data: Any,
    step: Callable[[nn.Module, Any], tuple[Loss, Metrics]],
    **reading: Any,
) -> dict[str, float]:
    """Runs a task's step over a set without gradients: the mean loss and every metric, exactly."""
    rows: list[torch.Tensor] = []
    gathered: dict[str, list[tuple[torch.Tensor, ...]]] = {}
    functions: dict[str, Callable[..., Any]] = {}
    names: list[str] = []
    with evaluating(model):
        for _, batch in _batches(spec, world, data, **reading):
            loss, metrics = step(model, batch)
            means = {name: metric for name, metric in metrics.items() if isinstance(metric, Mean)}
            names = ["loss", *sorted(means)]
            numbers = [loss.sum.detach().double(), loss.count]
            for name in sorted(means):
                numbers += [means[name].sum, means[name].count]
            rows.append(torch.stack([torch.as_tensor(x, dtype=torch.float64, device=world.device) for x in numbers]))
            for name, metric in metrics.items():
                if isinstance(metric, Gather):
                    gathered.setdefault(name, []).append(metric.tensors)
                    functions[name] = metric.function
    counts = [_num_batches(len(data), spec.eval_batch_size, world.size, rank) for rank in range(world.size)]
    table = join_blocks(world, torch.stack(rows) if rows else None, counts)
    samples = [_rows(len(data), spec.eval_batch_size, world.size, rank) for rank in range(world.size)]
    widths = {name: len(batches[0]) for name, batches in gathered.items()}
    names, widths = json.loads(say(world, json.dumps([names, widths])))
    totals = _sum_in_order(table)
    found = {name: totals[2 * i] / totals[2 * i + 1] for i, name in enumerate(names)}
    for name, width in widths.items():
        batches = gathered.get(name, [])
        joined = [
            join_blocks(world, torch.cat([b[i] for b in batches]) if batches else None, samples) for i in range(width)
        ]
        found[name] = float(say(world, repr(float(functions[name](*joined))) if world.rank == 0 else ""))
    return found


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; puts every module's mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _batches(
    spec: RunSpec, world: World, data: Any, collate: Any = None, num_workers: int = 0
) -> Iterator[tuple[Draw, Any]]:
    size, total = spec.eval_batch_size, len(data)
    first, stop = _dealt(total, size, world.size, world.rank)

    def draws() -> Iterator[Draw]:
        for index in range(first, stop):
            ids = np.arange(index * size, min((index + 1) * size, total), dtype=np.int64)
            yield Draw(ids, np.zeros(len(ids), dtype=np.int64))

    yield from read(
        data,
        draws(),
        seed=mix(Stream.SPLIT, spec.seed) >> 1,
        device=world.device,
        collate=collate,
        num_workers=num_workers,
        finish=finisher(data, spec),
    )


def _dealt(total: int, size: int, num_processes: int, rank: int) -> tuple[int, int]:
    """The run of batches that a rank measures; rank 0 has one wherever there is any, since it speaks for the others."""
    batches = -(-total // size)
    return -(-batches * rank // num_processes), -(-batches * (rank + 1) // num_processes)


def _num_batches(total: int, size: int, num_processes: int, rank: int) -> int:
    first, stop = _dealt(total, size, num_processes, rank)
    return stop - first


def _rows(total: int, size: int, num_processes: int, rank: int) -> int:
    first, stop = _dealt(total, size, num_processes, rank)
    return min(stop * size, total) - min(first * size, total)


def _sum_in_order(table: torch.Tensor) -> list[float]:
    totals = [0.0] * table.shape[1]
    for row in table.tolist():
        totals = [total + value for total, value in zip(totals, row, strict=True)]
    return totals
