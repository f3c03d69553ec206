"""The way from a loss to an update.

backward    terms of the loss (losses.py); what this rank computed for each parameter (parameters.py)
scaler      what a loss scaler did (scalers.py)
clip        what was clipped, and the norm that was found (clips.py)
step        .grad, rates and weights just before; weights just after
schedule    which rates a scheduler set (schedules.py)
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.autograd.graph import GradientEdge
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from squall.verify.observe.blind import watching
from squall.verify.observe.clips import Clips
from squall.verify.observe.losses import Terms, leave_packed
from squall.verify.observe.models import Models
from squall.verify.observe.parameters import Parameters
from squall.verify.observe.recorder import Recorder, where
from squall.verify.observe.scalers import Scalers
from squall.verify.observe.schedules import Schedules

_OPTIMIZER = sys.modules[Optimizer.__module__].__file__


@dataclass
class _Step:
    """A call of an optimiser's `step`, from torch's hooks before it to those after it."""

    call: FrameType
    optimizer: Optimizer
    event: dict[str, Any] | None = None  # once it is known what will be applied

    @property
    def running(self) -> bool:
        """Whether it is on the stack: a step that raised is not, and no hook tells."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame is self.call:
                return True
            frame = frame.f_back
        return False


class Updates:
    """Watches the updates of one rank."""

    def __init__(self, recorder: Recorder, parameters: Parameters, models: Models) -> None:
        self.recorder, self.parameters, self.models = recorder, parameters, models
        self.on_step: Callable[[], None] = lambda: None
        self.on_backward: Callable[[], None] = lambda: None
        self.optimizers: list[Optimizer] = []
        self.steps = 0
        self.clips = Clips(recorder, parameters)
        self.scalers = Scalers(recorder, self.number, lambda: self.steps)
        self.schedules = Schedules(recorder, self.number)
        self._running = False
        self._step: _Step | None = None
        self._in_closure = False

    def install(self) -> None:
        """From now on every update is noted."""
        leave_packed()
        self._wrap_backward()
        for part in (self.clips, self.scalers, self.schedules):
            part.install()
        register_optimizer_step_pre_hook(_uncompiled(self._before_step))
        register_optimizer_step_post_hook(_uncompiled(self._after_step))

    def _wrap_backward(self) -> None:
        backward = torch.autograd.backward

        @functools.wraps(backward)
        def watched(tensors: Any, *args: Any, **named: Any) -> None:
            if self._running or not self.recorder.here:
                return backward(tensors, *args, **named)
            if not self.recorder.observing:
                backward(tensors, *args, **named)
                return self.on_backward()
            losses: list[Any] = [tensors] if isinstance(tensors, Tensor | GradientEdge) else list(tensors)
            self._running, terms = True, self._begin_backward(losses)
            try:
                return backward(losses, *args, **named)
            finally:
                self._running = False
                self._end_backward(terms)

        torch.autograd.backward = watched

    @watching(())
    def _begin_backward(self, losses: list[Any]) -> Sequence[Terms]:
        for optimizer in self.optimizers:
            self._register(optimizer)
        self.parameters.watch()
        latest = self.models.latest
        first = losses[0] if losses else None
        self.parameters.backward = self.recorder.note(
            "backward",
            closure=self._in_closure,
            weights=self.parameters.hashes(),
            loss=float(first.detach()) if isinstance(first, Tensor) and first.numel() == 1 else None,
            finite=True,
            batch=None if latest is None else latest["batch"],
            forward=None if latest is None else latest["n"],
            where=where(),
        )
        return [Terms(loss) for loss in losses]

    @watching(None)
    def _end_backward(self, terms: Sequence[Terms]) -> None:
        event, self.parameters.backward = self.parameters.backward, None
        if event is not None:
            event["terms"] = [term for one in terms for term in one.close()]
        self.on_backward()

    def number(self, optimizer: Any) -> int:
        """An optimiser's number; a new one is noted. -1 for what is none."""
        optimizer = getattr(optimizer, "optimizer", optimizer)  # Accelerate's
        for number, known in enumerate(self.optimizers):
            if known is optimizer:
                return number
        if not isinstance(optimizer, Optimizer):
            return -1
        self.optimizers.append(optimizer)
        number = len(self.optimizers) - 1
        self.recorder.note(
            "optimizer", optimizer=number, kind=type(optimizer).__name__, module=type(optimizer).__module__
        )
        self._register(optimizer)
        return number

    def note_horizons(self) -> None:
        """How each schedule would go on."""
        self.schedules.note_horizons(self.steps)

    def _register(self, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                self.parameters.index(parameter)

    @watching(None)
    def _before_step(self, optimizer: Optimizer, args: Any, named: Any) -> Any:
        if not self.recorder.here:
            return None
        if self._step is not None:
            if self._step.running:
                return None  # an optimiser inside another
            self._failed(self._step)
        if _left_out(optimizer):
            return None
        step = self._step = _Step(_caller(), optimizer)
        closure = named.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            self._note_step(step)
            return None

        def closed(*given: Any, **more: Any) -> Any:  # its backward passes belong to this update
            self._in_closure = True
            try:
                result = closure(*given, **more)
            finally:
                self._in_closure = False
            if step.event is None:
                self._note_step(step)
            return result

        if "closure" in named:
            return args, {**named, "closure": closed}
        return (args[0], closed, *args[2:]), named

    def _failed(self, step: _Step) -> None:
        """A step raised, and the script has gone on: it was no update."""
        if step.event is not None:
            step.event["event"] = "failed step"
        self._step = None

    @watching(None)
    def _note_step(self, step: _Step) -> None:
        """What the optimiser is about to apply."""
        optimizer = step.optimizer
        event = step.event = self.recorder.note(
            "step",
            optimizer=self.number(optimizer),
            groups=[_group(one) for one in optimizer.param_groups],
            where=where(),
        )
        if not self.recorder.observing:
            return
        self._register(optimizer)
        groups = {
            self.parameters.index(one): place
            for place, group in enumerate(optimizer.param_groups)
            for one in group["params"]
        }
        scale = getattr(optimizer, "grad_scale", None)  # a fused optimiser takes it out as it steps
        held = {index: self.parameters.known[index] for index in groups}
        given = {index: one.grad for index, one in held.items() if one.grad is not None}
        event["from"] = {str(index): self.parameters.contributions(index) for index in given}
        event["format"] = _narrowest(given.values())
        event["group_of"] = {str(index): place for index, place in groups.items()}
        for index, one in held.items():
            self.recorder.keep(event, f"before.{index}", self.parameters.elements(index, one))
        for index, gradient in given.items():
            applied = self.parameters.elements(index, gradient)
            self.recorder.keep(event, f"grad.{index}", applied if scale is None else applied / float(scale))
            local = self.parameters.local(index)
            if local is not None:
                self.recorder.keep(event, f"local.{index}", local)

    @watching(None)
    def _after_step(self, optimizer: Optimizer, args: Any, named: Any) -> None:
        step = self._step
        if step is None or step.optimizer is not optimizer or not self.recorder.here:
            return
        self._step = None
        if step.event is None:
            return
        if self.recorder.observing:
            self.parameters.use([int(index) for index in step.event["from"]])
            for group in optimizer.param_groups:
                for one in group["params"]:
                    index = self.parameters.index(one)
                    self.recorder.keep(step.event, f"after.{index}", self.parameters.elements(index, one))
        self.steps += 1
        self.on_step()


def _uncompiled(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook before which compiled code ends, and after which it goes on."""

    def called(*args: Any) -> Any:
        return hook(*args)

    return _disable_dynamo(called)


def _caller() -> FrameType:
    """The frame of torch's wrapper of `step`, which calls the hooks."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename != _OPTIMIZER and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _left_out(optimizer: Optimizer) -> bool:
    """Whether a fused optimiser is about to leave an update out, since the scaler has found infinite gradients."""
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, Tensor) and bool(found)


def _narrowest(tensors: Iterable[Tensor]) -> str:
    """The number format with the fewest bits: "bfloat16"."""
    formats = {one.dtype for one in tensors}
    return str(min(formats, key=lambda one: (one.itemsize, str(one)), default=torch.float32)).removeprefix("torch.")


def _group(group: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a parameter group."""
    numbers: dict[str, Any] = {}
    for key, value in group.items():
        if isinstance(value, bool | int | float | str):
            numbers[key] = value
        elif isinstance(value, Tensor) and value.numel() == 1:
            numbers[key] = float(value)
        elif key == "betas":
            numbers[key] = [float(one) for one in value]
    return numbers
