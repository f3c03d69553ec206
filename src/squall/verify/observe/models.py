"""Which network is called with what: its mode, its batch, its statistics, at each outermost call.

torch calls a hook before every module; the outermost one is the network (or DDP around it). What lies inside tells
whether parts are in another mode than the whole, and the statistics that normalisation layers start the call with,
after DDP has broadcast them.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from squall.verify.observe import streams
from squall.verify.observe.blind import watching
from squall.verify.observe.contents import content
from squall.verify.observe.loaders import Loaders, leaves
from squall.verify.observe.parameters import Parameters
from squall.verify.observe.recorder import Recorder, elements, is_traced, positions, where

_BUFFERS, _LARGE = 200, 1_000_000  # buffers of a network that are looked at, and numbers of the largest


class Models:
    """Watches the networks of one rank."""

    def __init__(self, recorder: Recorder, parameters: Parameters, loaders: Loaders) -> None:
        self.recorder, self.parameters, self.loaders = recorder, parameters, loaders
        self.known: list[nn.Module] = []
        self.latest: dict[str, Any] | None = None  # the outermost call that was begun last
        self._depth = 0
        self._open: dict[str, Any] | None = None
        self._open_model: nn.Module | None = None

    def install(self) -> None:
        """From now on every call of a network is noted."""
        warnings.filterwarnings("ignore", message=r"Using `torch.compile\(module\)` when there are global hooks")
        register_module_forward_pre_hook(self._before)
        register_module_forward_hook(self._after, always_call=True)

    def index(self, model: nn.Module) -> int:
        """A network's number; a new one is added with its parameters."""
        for number, known in enumerate(self.known):
            if known is model:
                return number
        self.known.append(model)
        number = len(self.known) - 1
        self._names(model, number)
        return number

    def _names(self, model: nn.Module, number: int) -> None:
        plain = model.module if isinstance(model, DistributedDataParallel) else model
        self.parameters.add_model(plain, f"model {number}: " if number else "")

    @watching(None)
    def _before(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if is_traced() or not self.recorder.here or _is_recomputed():
            return
        self._depth += 1
        if self._depth == 1:
            self._outermost(module, inputs, _by_name())
        elif self._depth == 2 and self._open is not None and isinstance(self._open_model, DistributedDataParallel):
            self._statistics(module)  # DDP has broadcast them by now

    @watching(None)
    def _after(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if is_traced() or not self.recorder.here or _is_recomputed():
            return
        self._depth = max(0, self._depth - 1)
        if self._depth == 0:
            self._open = None

    def _outermost(self, module: nn.Module, inputs: tuple[Any, ...], named: tuple[Any, ...]) -> None:
        first = next(module.parameters(), None)
        if first is None or not _is_real(first) or isinstance(module, nn.modules.loss._Loss):
            return
        if "backend" not in self.recorder.about and dist.is_available() and dist.is_initialized():
            self.recorder.about["backend"] = dist.get_backend()
        if not self.recorder.observing:
            return
        number = self.index(module)
        if torch.is_grad_enabled():
            self._names(module, number)  # layers may have come, or been frozen or freed
        tensors = [leaf for one in (*inputs, *named) for leaf in leaves(one)]
        batch = self.loaders.source(tensors)
        sub = list(module.modules())
        inner = module.module if isinstance(module, DistributedDataParallel) else module
        self._open_model = module
        self._open = self.latest = self.recorder.note(
            "forward",
            model=number,
            kind=type(module).__name__,
            training=inner.training,
            modes=[one.training for one in sub if isinstance(one, _BatchNorm | _DropoutNd)][:100],
            grad=torch.is_grad_enabled(),
            batch=None if batch is None else batch["n"],
            size=len(tensors[0]) if tensors and tensors[0].ndim else 0,
            quiet=[name for name, one in inner.named_modules() if inner.training and not one.training][:20],
            dropout=any(isinstance(one, _DropoutNd) and one.training and one.p > 0 for one in sub),
            norms=[
                name
                for name, one in module.named_modules()
                if isinstance(one, _BatchNorm) and not isinstance(one, nn.SyncBatchNorm) and one.training
            ][:100],
            sync_norms=sum(isinstance(one, nn.SyncBatchNorm) for one in sub),
            stream=streams.torch_state(),
            input=_fingerprint(tensors, every=not inputs),
            where=where(),
        )
        if not isinstance(module, DistributedDataParallel):
            self._statistics(module)
        elif module.require_forward_param_sync is False:
            self._statistics(module.module)

    def statistics_at_end(self) -> None:
        """Notes the buffers of all networks as they are left."""
        if self.recorder.observing:
            for number, model in enumerate(self.known):
                self._open = self.recorder.note("left", model=number)
                self._statistics(model.module if isinstance(model, DistributedDataParallel) else model)
            self._open = None

    def _statistics(self, module: nn.Module) -> None:
        """The buffers of normalisation layers as the call begins."""
        event = self._open
        if event is None or event.get("buffers") is not None:
            return
        names: list[str] = []
        for name, buffer in module.named_buffers():
            if is_lazy(buffer):
                continue  # it has no shape yet
            if len(names) < _BUFFERS and buffer.is_floating_point() and 0 < buffer.numel() <= _LARGE:
                self.recorder.keep(event, f"buffer.{len(names)}", elements(buffer, positions(buffer.numel())))
                names.append(name)
        event["buffers"] = names


def _by_name() -> tuple[Any, ...]:
    """What a network is called with by name, in torch's own call of the hooks: hooks for all modules are not told."""
    frame = sys._getframe(3)
    given = frame.f_locals.get("kwargs") if frame.f_code.co_filename == nn.modules.module.__file__ else None
    return tuple(given.values()) if isinstance(given, dict) else ()


def _is_recomputed() -> bool:
    """Whether a backward pass runs: what checkpointing computes again in it is no new call."""
    return torch._C._current_graph_task_id() != -1


def _is_real(tensor: Tensor) -> bool:
    """Whether a tensor has numbers: not one of a network that only measures itself."""
    return tensor.device.type != "meta" and not isinstance(tensor, FakeTensor)


def _fingerprint(tensors: list[Tensor], *, every: bool) -> int | None:
    """A hash of the first tensor that a network is called with, or of `every` one, where names tell no first."""
    found = [
        content(tensor)
        for tensor in tensors
        if tensor.numel() > 1 and tensor.device.type == "cpu" and not hasattr(tensor, "to_local")
    ]
    if not found:
        return None
    return (hash(tuple(found)) if every and len(found) > 1 else found[0]) or None
