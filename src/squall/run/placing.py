"""Bringing a model into a job: the same weights and data on every rank, an optimiser that is really the model's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from squall.cluster.world import World
from squall.data.batches import read
from squall.data.nested import each_tensor
from squall.data.order import Draw
from squall.errors import InputError, RunError
from squall.run.collect import broadcast, differing

_COMPARED = 3  # samples


def check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Refuses an optimiser that holds parameters of another model.

    Raises:
        InputError: with how many.
    """
    own = {id(parameter) for parameter in model.parameters()}
    strangers = sum(id(p) not in own for group in optimizer.param_groups for p in group["params"])
    if strangers:
        raise InputError(
            f"the optimiser holds {strangers} parameters that are not the model's",
            [("to do", "build the optimiser from the model that goes into run.setup: SGD(model.parameters(), ...)")],
        )


def check_parameters(model: nn.Module) -> None:
    """Refuses a model whose parameters cannot be one flat vector.

    Raises:
        InputError: a lazy layer, complex parameters, nothing to train.
    """
    lazy = [name for name, p in model.named_parameters() if isinstance(p, nn.parameter.UninitializedParameter)]
    if lazy:
        raise InputError(
            f"{lazy[0]} has no shape yet (a lazy layer)",
            [
                ("rule", "all parameters need their shapes before run.setup"),
                ("to do", "call the model once on a batch in the model factory"),
            ],
        )
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise InputError(
            "the model has no parameter that requires a gradient",
            [("found", f"{sum(1 for _ in model.parameters())} parameters, all frozen")],
        )
    for name, parameter in named:
        if parameter.is_complex():
            raise InputError(
                f"{name} is complex", [("rule", "parameters must be real; store the real and imaginary parts")]
            )


def same_everywhere(world: World, model: nn.Module) -> None:
    """Gives every rank rank 0's parameters and buffers, in one message a dtype.

    Raises:
        RunError: a rank built another model.
    """
    state = {name: t for name, t in model.state_dict().items() if isinstance(t, torch.Tensor)}  # and extra state
    names = "\n".join(f"{name} {tuple(t.shape)} {t.dtype}" for name, t in state.items())
    if strangers := differing(world, names):
        raise RunError(
            f"rank {strangers[0]} built another model than rank 0",
            [("rule", "the model factory must give the same layers, names and shapes in every process")],
        )
    if world.group is None:
        return
    tensors = [*model.parameters(), *model.buffers()]
    for dtype in {tensor.dtype: None for tensor in tensors}:
        group = [tensor.detach() for tensor in tensors if tensor.dtype == dtype]
        flat = broadcast(world, torch.cat([tensor.flatten() for tensor in group]), 0)
        for tensor, piece in zip(group, torch.split(flat, [tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(piece.view(tensor.shape))


def check_same_data(
    world: World, data: Any, collate: Callable[..., Any] | None, seed: int, *, wanted: bool = False
) -> str:
    """Compares some samples of the training set over the ranks, each read as in epoch 0.

    The order deals out indices: ranks whose sets differ would train on another set than one process does, and the
    ledger, which counts indices, would not see it.

    Arguments:
        wanted: the hash is asked for, also of a process that is alone.

    Returns:
        A hash of these samples, for the sessions that go on with the run; nothing is read where nobody wants it.

    Raises:
        RunError: a rank has other samples, or another number of them.
    """
    if world.group is None and not wanted:
        return ""
    ids = np.unique(np.linspace(0, len(data) - 1, _COMPARED).round().astype(np.int64))
    draws = [Draw(ids[i : i + 1], np.zeros(1, dtype=np.int64)) for i in range(len(ids))]
    digest = hashlib.sha256(str(len(data)).encode())

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.layout == torch.strided:
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return tensor

    for _, batch in read(data, draws, seed=seed, device=torch.device("cpu"), collate=collate):
        each_tensor(note, batch)
    if strayed := differing(world, digest.hexdigest()):
        raise RunError(
            f"rank {strayed[0]} has another training set than rank 0",
            [
                ("found", f"of {len(data)} samples some were compared, each read with the seed of its index"),
                ("rule", "all ranks hold the same set in the same order: who trains on what is dealt out by index"),
                ("to do", "seed what makes the data, and sort what lists files"),
            ],
        )
    return digest.hexdigest()
