"""What a rank saw, as it goes to its trace: events in order, and the numbers that belong to them.

A trace has to stay small, and comparing must be exact. So of each parameter, gradient and buffer only a sample of the
elements is kept, always the same ones: what is summed over processes, scaled and applied element by element is right or
wrong in those as in the others. An update keeps about 4 KB a tensor: 50 updates of 200 tensors are 40 MB.

    rank-0.jsonl           {"n": 17, "event": "step", "optimizer": 0, "lr": [0.1], ...}     one event a line
    rank-0.safetensors     "17.grad.3": the elements kept of the gradient of parameter 3 at event 17

An event costs microseconds; it is written when the trace is saved: at the end, and before the part of the training of
which only little is recorded. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig
import weakref
from pathlib import Path
from types import FrameType
from typing import Any

import numpy
import torch
from safetensors.numpy import save_file
from torch import Tensor

SAMPLED = 256
"""Elements that are kept of each tensor, at most."""

_OURS = str(Path(__file__).resolve().parents[2]) + os.sep
_LIBRARIES = tuple(
    {os.path.realpath(path) + os.sep for path in (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"))}
)


_ALIVE: weakref.WeakSet[Recorder] = weakref.WeakSet()


def _in_child() -> None:
    for recorder in list(_ALIVE):
        recorder.here = False


os.register_at_fork(after_in_child=_in_child)


class Recorder:
    """The trace of one rank.

    Attributes:
        rank, processes: of this rank.
        here: whether this process is the rank itself, not something that it has forked. (An attribute: code that is
            being compiled can read it, and cannot ask the system.)
        observing: whether everything is recorded, or only what is cheap and needed to the end (rates, epochs).
    """

    def __init__(self, folder: Path, rank: int, processes: int, *, epochs: int, steps: int) -> None:
        self.folder, self.rank, self.processes = folder, rank, processes
        self.epochs, self.steps = epochs, steps
        self.observing = True
        self.about: dict[str, Any] = {}
        self._events: list[dict[str, Any]] = []
        self._arrays: dict[str, numpy.ndarray[Any, Any]] = {}
        self.here = True
        self.blind: dict[str, dict[str, Any]] = {}  # hook -> the event that says that it has failed (`blind.py`)
        _ALIVE.add(self)

    def note(self, event: str, /, **fields: Any) -> dict[str, Any]:
        """Adds an event; its fields may still be changed until the trace is saved."""
        noted = {"n": len(self._events), "event": event, **fields}
        self._events.append(noted)
        return noted

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of a kind until now."""
        return [event for event in self._events if event["event"] == kind]

    def event(self, number: int) -> dict[str, Any]:
        """One of them."""
        return self._events[number]

    def last(self, kind: str) -> dict[str, Any] | None:
        """The latest event of a kind."""
        return next((event for event in reversed(self._events) if event["event"] == kind), None)

    def keep(self, event: dict[str, Any], name: str, values: numpy.ndarray[Any, Any]) -> None:
        """Keeps numbers that belong to an event under a name; in half the space where nothing of them is lost."""
        if values.dtype == numpy.float64:
            with numpy.errstate(over="ignore"):
                narrow = values.astype(numpy.float32)
            values = narrow if numpy.array_equal(narrow, values, equal_nan=True) else values
        self._arrays[f"{event['n']}.{name}"] = numpy.ascontiguousarray(values)

    def save(self) -> None:
        """Writes all of it; the file of events comes last, so that a trace with events is whole."""
        if not self.here:
            return
        stem = self.folder / f"rank-{self.rank}"
        save_file(self._arrays, str(stem) + ".safetensors.new")
        Path(str(stem) + ".safetensors.new").replace(str(stem) + ".safetensors")
        lines = [{"n": -1, "event": "about", **self.about}, *self._events]
        text = "".join(json.dumps(line, default=_plain) + "\n" for line in lines)
        Path(str(stem) + ".jsonl.new").write_text(text, encoding="utf-8")
        Path(str(stem) + ".jsonl.new").replace(str(stem) + ".jsonl")


def _plain(value: object) -> object:
    """Numbers of other libraries as Python's; of anything else its type's name."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, numpy.generic):
        return value.item()
    return type(value).__name__


def where() -> list[Any] | None:
    """The innermost line of the user's own code on the stack, as [path, line]; None where there is none.

    What lies in Python's library, among installed packages or in Squall is not the user's.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if is_users(path):
            return [path, frame.f_lineno]
        frame = frame.f_back
    return None


_known: dict[str, bool] = {}


def is_users(path: str) -> bool:
    """Whether a file of code is the user's own."""
    if path not in _known:
        real = os.path.realpath(path)
        installed = any(part in ("site-packages", "dist-packages") for part in Path(real).parts)
        _known[path] = not (installed or path.startswith("<") or real.startswith((_OURS, *_LIBRARIES)))
    return _known[path]


def is_traced() -> bool:
    """Whether what runs here is being compiled, or transformed (vmap): its tensors hold no numbers of their own."""
    return torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is not None


def positions(numel: int) -> Tensor:
    """Which elements of a flat tensor are kept: all, or `SAMPLED` of them evenly spread.

    Returns:
        int64, ascending, shape (min(numel, SAMPLED),)
    """
    if numel <= SAMPLED:
        return torch.arange(numel)
    return torch.arange(SAMPLED, dtype=torch.int64) * numel // SAMPLED


def elements(tensor: Tensor, at: Tensor) -> numpy.ndarray[Any, Any]:
    """The kept elements of a tensor in float64; of one that is spread over processes NaN where others hold them.

    Arguments:
        at: positions in the flattened whole tensor.
    """
    with torch.no_grad():
        tensor = tensor.detach()
        if hasattr(tensor, "to_local"):
            return _of_shard(tensor, at)
        found = _of_sparse(tensor, at) if tensor.layout == torch.sparse_coo else sampled(tensor, at)
        if found.is_complex():
            found = found.real  # what is scaled and summed right there is so in the other half
        return found.to("cpu", torch.float64).numpy().copy()


def sampled(tensor: Tensor, at: Tensor) -> Tensor:
    """The elements of a tensor at positions in its flat form, which is not made where that were a copy."""
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    at = at.to(tensor.device)
    if tensor.is_contiguous():
        return tensor.reshape(-1)[at]
    return tensor[torch.unravel_index(at, tensor.shape)]


def _of_sparse(tensor: Tensor, at: Tensor) -> Tensor:
    """The elements of a sparse tensor (an embedding's gradient), looked up among its rows; the others are zeros."""
    tensor = tensor.coalesce()
    values, sparse = tensor.values(), tensor.sparse_dim()
    row = int(torch.Size(tensor.shape[sparse:]).numel())
    keys = torch.zeros(values.shape[0], dtype=torch.int64, device=values.device)
    for place, size in zip(tensor.indices(), tensor.shape[:sparse], strict=True):
        keys = keys * size + place
    # keys: which row each is, ascending; at: row x numbers of a row + place in it
    found = torch.zeros(len(at), dtype=values.dtype, device=values.device)
    if not len(keys) or not row:
        return found
    at = at.to(values.device)
    rows, inside = at // row, at % row
    near = torch.searchsorted(keys, rows).clamp_(max=len(keys) - 1)
    held = keys[near] == rows
    found[held] = values.reshape(len(keys), row)[near[held], inside[held]]
    return found


def _of_shard(tensor: Any, at: Tensor) -> numpy.ndarray[Any, Any]:
    """The kept elements of a DTensor of which this process holds some rows."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    local = tensor.to_local()
    values = numpy.full(len(at), numpy.nan)
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    if local.numel() == 0:
        return values
    flat = local.reshape(-1)
    rest, inside = at, torch.zeros_like(at)
    mine = torch.ones(len(at), dtype=torch.bool)
    stride = 1
    strides = []
    for size in reversed(tensor.shape):
        strides.append(stride)
        stride *= int(size)
    local_stride = 1
    steps = []
    for size in reversed(shape):
        steps.append(local_stride)
        local_stride *= int(size)
    for size, whole, first, step in zip(shape, reversed(strides), offset, reversed(steps), strict=True):
        coordinate = rest // whole - first
        mine &= (coordinate >= 0) & (coordinate < size)
        inside = inside + coordinate * step
        rest = rest % whole
    values[mine.numpy()] = flat[inside[mine].to(flat.device)].to("cpu", torch.float64).numpy()
    return values
