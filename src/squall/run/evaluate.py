"""Exact evaluation on all processes: nothing padded, nothing counted twice, the same bits on any number of processes.

The set is cut once into batches of the recipe's `eval_batch_size`, since an output's last bits depend on the batch it
sits in. Batches are dealt to ranks whole; sums are formed per batch in float64 and added in batch order; gathered
values are joined in data set order. (Peers pad the last batch or drop it: pytorch#25162, examples#980.)

A set may leave samples out (files that do not decode, under "skip"): nobody knows before reading how many rows a rank
will have, so the ranks tell each other afterwards. The generators are seeded before each batch by its number, for
models that draw random numbers in evaluation too.
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
from squall.errors import InputError, RunError
from squall.metrics import Gather, Loss, Mean, Metrics
from squall.rng import Stream, mix, seed_pass
from squall.run.book import ratio
from squall.run.collect import each, join_blocks, say
from squall.run.spec import RunSpec
from squall.run.stepper import finisher

_ASKED = -1


class BrokenOffError(Exception):
    """A rank was asked to leave, so all left the evaluation; `Run` goes on from here."""


class PerSample:
    """One value (or row) per sample of a set, in data set order; samples that the set left out are missing."""

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
    *,
    name: str = "data",
    asked: Callable[[], bool] = lambda: False,
    **reading: Any,
) -> PerSample:
    """Applies `measure(outputs, targets)` to each batch of (inputs, targets); joins the per-sample values.

    Arguments:
        name: what errors call the set.
        asked: whether this rank is to leave before the end.

    Raises:
        BrokenOffError: a rank was asked to leave.
        InputError: an empty set, or one whose samples were all left out.
        RunError: a measure that does not give one value per sample.
    """
    _check_not_empty(data, name)
    blocks: list[torch.Tensor] = []
    with evaluating(model), _generators_kept(world.device):
        for draw, batch in _batches(spec, world, data, name, **reading):
            if asked():
                break
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
    _first_measured(world, len(blocks), data, name, asked())
    return PerSample(join_blocks(world, torch.cat(blocks) if blocks else None))


def averages(
    spec: RunSpec,
    world: World,
    model: nn.Module,
    data: Any,
    step: Callable[[nn.Module, Any], tuple[Loss, Metrics]],
    *,
    name: str = "data",
    asked: Callable[[], bool] = lambda: False,
    **reading: Any,
) -> dict[str, float]:
    """Runs a task's step over a set without gradients: the mean loss and every metric, exactly; nan over no elements.

    Arguments:
        name: what errors call the set.
        asked: whether this rank is to leave before the end.

    Raises:
        BrokenOffError: a rank was asked to leave.
        InputError: an empty set, or one whose samples were all left out.
    """
    _check_not_empty(data, name)
    rows: list[torch.Tensor] = []
    gathered: dict[str, list[tuple[torch.Tensor, ...]]] = {}
    functions: dict[str, Callable[..., Any]] = {}
    names: list[str] = []
    with evaluating(model), _generators_kept(world.device):
        for _, batch in _batches(spec, world, data, name, **reading):
            if asked():
                break
            loss, metrics = step(model, batch)
            means = {key: metric for key, metric in metrics.items() if isinstance(metric, Mean)}
            names = ["loss", *sorted(means)]
            numbers = [loss.sum.detach().double(), loss.count]
            for key in sorted(means):
                numbers += [means[key].sum, means[key].count]
            rows.append(torch.stack([torch.as_tensor(x, dtype=torch.float64, device=world.device) for x in numbers]))
            for key, metric in metrics.items():
                if isinstance(metric, Gather):
                    gathered.setdefault(key, []).append(metric.tensors)
                    functions[key] = metric.function
    speaker = _first_measured(world, len(rows), data, name, asked())
    table = join_blocks(world, torch.stack(rows) if rows else None)
    widths = {key: len(batches[0]) for key, batches in gathered.items()}
    names, widths = json.loads(say(world, json.dumps([names, widths]), speaker))
    totals = _sum_in_order(table)
    found = {key: ratio(totals[2 * i], totals[2 * i + 1]) for i, key in enumerate(names)}
    for key, width in widths.items():
        batches = gathered.get(key, [])
        joined = [join_blocks(world, torch.cat([b[i] for b in batches]) if batches else None) for i in range(width)]
        number = repr(float(functions[key](*joined))) if world.rank == speaker else ""
        found[key] = float(say(world, number, speaker))
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


def _check_not_empty(data: Any, name: str) -> None:
    if len(data) == 0:
        raise InputError(
            f"the {name} set is empty",
            [("found", "no samples to evaluate"), ("to do", "a set with a sample or more, or no such set (None)")],
        )


def _first_measured(world: World, num_batches: int, data: Any, name: str, asked: bool) -> int:
    """The first rank that measured a batch: it speaks for the others."""
    found = each(world, _ASKED if asked else num_batches)
    if _ASKED in found:
        raise BrokenOffError
    for rank, count in enumerate(found):
        if count:
            return rank
    raise InputError(
        f"all samples of the {name} set were skipped",
        [("found", f"none of {len(data)} samples could be read"), ("to do", "repair the files")],
    )


@contextmanager
def _generators_kept(device: torch.device) -> Iterator[None]:
    """Puts the generators that `seed_pass` seeds back: a loop that draws numbers must not notice an evaluation."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    states = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _batches(
    spec: RunSpec, world: World, data: Any, name: str, collate: Any = None, num_workers: int = 0
) -> Iterator[tuple[Draw, Any]]:
    """This rank's batches; those whose samples were all skipped are left out."""
    size, total, seed = spec.eval_batch_size, len(data), mix(Stream.EVALUATION, spec.seed) >> 1
    first, stop = _dealt(total, size, world.size, world.rank)

    def draws() -> Iterator[Draw]:
        for index in range(first, stop):
            ids = np.arange(index * size, min((index + 1) * size, total), dtype=np.int64)
            yield Draw(ids, np.zeros(len(ids), dtype=np.int64))

    reader = read(
        data,
        draws(),
        seed=seed,
        device=world.device,
        collate=collate,
        num_workers=num_workers,
        finish=finisher(data, spec),
        name=name,
    )
    for index, (draw, batch) in enumerate(reader, first):
        if len(draw):
            seed_pass(world.device, seed, 0, 0, index)
            yield draw, batch


def _dealt(total: int, size: int, num_processes: int, rank: int) -> tuple[int, int]:
    """The run of batches that a rank measures."""
    batches = -(-total // size)
    return -(-batches * rank // num_processes), -(-batches * (rank + 1) // num_processes)


def _sum_in_order(table: torch.Tensor) -> list[float]:
    totals = [0.0] * table.shape[1]
    for row in table.tolist():
        totals = [total + value for total, value in zip(totals, row, strict=True)]
    return totals
