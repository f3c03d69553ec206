"""Small collectives of a run: adding up counts, and joining blocks of rows in rank order.

Blocks may have different numbers of rows, which Gloo's all-gather refuses; each rank broadcasts its own block instead.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from squall.checkpoint.layout import DTYPES
from squall.cluster.world import World
from squall.errors import InputError, RunError, SquallError

_DTYPES = tuple(DTYPES.values())
_MOST_DIMENSIONS = 8


def add_up(world: World, values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Integer sum over ranks, the same on all of them."""
    if world.group is None:
        return values
    tensor = torch.from_numpy(values.copy()).to(world.device)
    world.group.allreduce([tensor]).wait()
    out: npt.NDArray[np.int64] = tensor.cpu().numpy()
    return out


def each(world: World, value: int) -> list[int]:
    """One number of every rank, in rank order, on all of them."""
    values = np.zeros(world.size, dtype=np.int64)
    values[world.rank] = value
    found: list[int] = add_up(world, values).tolist()
    return found


def broadcast(world: World, tensor: torch.Tensor, source: int) -> torch.Tensor:
    """Sends a tensor from one rank to all, in place."""
    if world.group is not None:
        options = torch.distributed.BroadcastOptions()
        options.rootRank = source
        options.rootTensor = 0
        world.group.broadcast([tensor], options).wait()
    return tensor


def say(world: World, text: str, source: int = 0) -> str:
    """One rank's text, on every rank (the others' argument is ignored)."""
    if world.group is None:
        return text
    data = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8)[: len(text.encode())]
    length = broadcast(world, torch.tensor([len(data)], device=world.device), source)
    buffer = (
        data.to(world.device)
        if world.rank == source
        else torch.empty(int(length), dtype=torch.uint8, device=world.device)
    )
    if int(length):
        broadcast(world, buffer, source)
    return buffer.cpu().numpy().tobytes().decode()


def on_main(world: World, do: Callable[[], str | None]) -> str:
    """What a function gives on rank 0, on every rank; an error of rank 0 is raised on all of them.

    Raises:
        InputError: as raised there; or what the system said of a file.
        RunError: as raised there.
    """
    said: dict[str, Any] = {}
    if world.rank == 0:
        try:
            said = {"text": do() or ""}
        except SquallError as error:
            said = {"error": [error.headline, error.rows, error.hint], "of_run": isinstance(error, RunError)}
        except OSError as error:
            rows = [("found", error.strerror or str(error)), ("to do", "make room, or look at its permissions")]
            said = {"error": [f"{error.filename or 'a file'} cannot be read or written", rows, ""], "of_run": False}
    heard = json.loads(say(world, json.dumps(said)))
    if "error" in heard:
        headline, rows, hint = heard["error"]
        kind = RunError if heard["of_run"] else InputError
        raise kind(headline, [(label, text) for label, text in rows], hint)
    text: str = heard["text"]
    return text


def differing(world: World, text: str) -> list[int]:
    """The ranks whose text is not rank 0's: the same list on every rank, so that all of them stop for one reason."""
    if world.group is None:
        return []
    marks = np.zeros(world.size, dtype=np.int64)
    marks[world.rank] = say(world, text) != text
    ranks: list[int] = np.flatnonzero(add_up(world, marks)).tolist()
    return ranks


def join_blocks(world: World, block: torch.Tensor | None) -> torch.Tensor:
    """Concatenates the ranks' blocks in rank order, on every rank, on the CPU.

    Arguments:
        block: this rank's rows, (n, ...), any n; None where it has none. At least one rank has a block.
    """
    if world.group is None:
        assert block is not None
        return block.detach().cpu()
    if block is not None and block.dtype not in _DTYPES:
        raise RunError(f"values of {block.dtype} cannot be joined over processes", [("to do", "values.float()")])
    rows = each(world, -1 if block is None else len(block))
    source = next(rank for rank, count in enumerate(rows) if count >= 0)
    shape = _shape(world, block, source)
    dtype = _DTYPES[shape[0]]
    parts = [torch.empty((0, *shape[1:]), dtype=dtype)]
    for rank, count in enumerate(rows):
        if count <= 0:
            continue
        if rank == world.rank:
            assert block is not None
            if tuple(block.shape[1:]) != tuple(shape[1:]) or block.dtype != dtype:
                raise RunError(
                    f"rank {rank} gathers values of another shape than rank {source}: "
                    f"{tuple(block.shape)}, {block.dtype}"
                )
            piece = block.detach().contiguous().to(world.device)
        else:
            piece = torch.empty((count, *shape[1:]), dtype=dtype, device=world.device)
        broadcast(world, piece.view(torch.uint8), rank)
        parts.append(piece.cpu())
    return torch.cat(parts)


def _shape(world: World, block: torch.Tensor | None, source: int) -> list[int]:
    header = torch.zeros(2 + _MOST_DIMENSIONS, dtype=torch.int64, device=world.device)
    if world.rank == source:
        assert block is not None
        numbers = [_DTYPES.index(block.dtype), block.ndim, *block.shape[1:]]
        header[: len(numbers)] = torch.tensor(numbers)
    values: list[Any] = broadcast(world, header, source).tolist()
    return [values[0], *values[2 : 1 + values[1]]]
