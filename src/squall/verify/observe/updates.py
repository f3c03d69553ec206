"""The way from a loss to an update: backward pass, loss scaling, clipping, optimiser, schedule.

backward    terms of the loss; what this rank computed for each parameter (parameters.py)
clip        what was clipped, and the norm that was found
step        .grad, rates and weights just before; weights just after
schedule    which rates a scheduler set, and how often it was asked to
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler, ReduceLROnPlateau, SequentialLR
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from squall.verify.observe.losses import Terms, leave_packed
from squall.verify.observe.models import Models
from squall.verify.observe.parameters import Parameters
from squall.verify.observe.recorder import Recorder, where
from squall.verify.observe.schedules import fresh, horizon

_BEYOND = 100  # steps of a schedule that are looked at beyond twice what was needed


class Updates:
    """Watches the updates of one rank."""

    def __init__(self, recorder: Recorder, parameters: Parameters, models: Models) -> None:
        self.recorder, self.parameters, self.models = recorder, parameters, models
        self.on_step: Callable[[], None] = lambda: None
        self.on_backward: Callable[[], None] = lambda: None
        self.optimizers: list[Optimizer] = []
        self.steps = 0
        self._schedulers: list[Any] = []
        self._fresh: list[Any] = []
        self._running = False
        self._open: dict[int, dict[str, Any]] = {}
        self._scheduling = 0
        self._in_closure = False

    def install(self) -> None:
        """From now on every update is noted."""
        leave_packed()
        self._wrap_backward()
        self._wrap_clipping()
        self._wrap_scaler()
        self._wrap_schedulers()
        register_optimizer_step_pre_hook(self._before_step)
        register_optimizer_step_post_hook(self._after_step)

    # losses

    def _wrap_backward(self) -> None:
        backward = torch.autograd.backward

        @functools.wraps(backward)
        def watched(tensors: Any, *args: Any, **named: Any) -> None:
            if self._running or not self.recorder.here or not self.recorder.observing:
                return backward(tensors, *args, **named)
            loss = tensors if isinstance(tensors, Tensor) else tensors[0]
            for optimizer in self.optimizers:
                self._register(optimizer)
            self.parameters.watch()
            terms = Terms(loss)
            latest = self.models.latest
            event = self.recorder.note(
                "backward",
                closure=self._in_closure,
                weights=self.parameters.hashes(),
                loss=float(loss.detach()) if loss.numel() == 1 else None,
                batch=None if latest is None else latest["batch"],
                forward=None if latest is None else latest["n"],
                where=where(),
            )
            self._running, self.parameters.backward = True, event
            try:
                return backward(tensors, *args, **named)
            finally:
                self._running, self.parameters.backward = False, None
                event["terms"] = terms.close()
                self.on_backward()

        torch.autograd.backward = watched

    # clipping

    def _wrap_clipping(self) -> None:
        from torch.nn import utils
        from torch.nn.utils import clip_grad

        for name, most in (("clip_grad_norm_", "max_norm"), ("clip_grad_value_", "clip_value")):
            call = getattr(clip_grad, name)

            @functools.wraps(call)
            def watched(
                parameters: Any, *args: Any, _call: Any = call, _name: str = name, _most: str = most, **named: Any
            ) -> Any:
                if not self.recorder.here or not self.recorder.observing:
                    return _call(parameters, *args, **named)
                given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
                event = self._note_gradients("clip", [one for one in given if one.grad is not None])
                event |= {"how": _name, "limit": float(named.get(_most, args[0] if args else 0.0)), "where": where()}
                result = _call(given, *args, **named)
                if isinstance(result, Tensor):
                    event["norm"] = float(result.full_tensor() if hasattr(result, "full_tensor") else result)
                return result

            setattr(clip_grad, name, watched)
            setattr(utils, name, watched)

    def _note_gradients(self, kind: str, parameters: list[Tensor]) -> dict[str, Any]:
        event = self.recorder.note(kind)
        event["parameters"] = [self.parameters.index(one) for one in parameters]
        for index, one in zip(event["parameters"], parameters, strict=True):
            self.recorder.keep(event, f"grad.{index}", self.parameters.elements(index, one.grad))  # type: ignore[arg-type]
        return event

    # loss scaling

    def _wrap_scaler(self) -> None:
        scaler = torch.amp.GradScaler
        scale, unscale, step, update = scaler.scale, scaler.unscale_, scaler.step, scaler.update

        def noted(what: str, one: Any, **fields: Any) -> None:
            if self.recorder.here and one.is_enabled():
                self.recorder.note("scaler", what=what, scale=one.get_scale(), where=where(), **fields)

        def scale_(one: Any, outputs: Any) -> Any:
            result = scale(one, outputs)
            noted("scale", one)
            return result

        def unscale_(one: Any, optimizer: Any) -> Any:
            noted("unscale", one, optimizer=self._number(optimizer))
            return unscale(one, optimizer)

        def step_(one: Any, optimizer: Any, *args: Any, **named: Any) -> Any:
            before = self.steps
            noted("step", one, optimizer=self._number(optimizer))
            result = step(one, optimizer, *args, **named)
            if self.steps == before:
                noted("skipped", one, optimizer=self._number(optimizer))
            return result

        def update_(one: Any, new_scale: Any = None) -> Any:
            result = update(one, new_scale)
            noted("update", one)
            return result

        for name, call in (("scale", scale_), ("unscale_", unscale_), ("step", step_), ("update", update_)):
            setattr(scaler, name, functools.wraps(getattr(scaler, name))(call))

    # optimisers

    def _number(self, optimizer: Any) -> int:
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

    def _register(self, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                self.parameters.index(parameter)

    def _before_step(self, optimizer: Optimizer, args: Any, named: Any) -> Any:
        if not self.recorder.here or self._open:
            return None  # an optimiser inside another
        closure = named.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            self._note_step(optimizer)
            return None

        def closed(*given: Any, **more: Any) -> Any:  # its backward passes belong to this update
            self._in_closure = True
            try:
                result = closure(*given, **more)
            finally:
                self._in_closure = False
            if id(optimizer) not in self._open:
                self._note_step(optimizer)
            return result

        if "closure" in named:
            return args, {**named, "closure": closed}
        return (args[0], closed, *args[2:]), named

    def _note_step(self, optimizer: Optimizer) -> None:
        """What the optimiser is about to apply."""
        event = self.recorder.note(
            "step",
            optimizer=self._number(optimizer),
            groups=[_group(one) for one in optimizer.param_groups],
            where=where(),
        )
        self._open[id(optimizer)] = event
        if not self.recorder.observing:
            return
        self._register(optimizer)
        groups = {
            self.parameters.index(one): place
            for place, group in enumerate(optimizer.param_groups)
            for one in group["params"]
        }
        held = {index: self.parameters.known[index] for index in groups}
        used = self.parameters.use([index for index, one in held.items() if one.grad is not None])
        event["from"] = {str(index): numbers for index, numbers in used.items()}
        event["group_of"] = {str(index): place for index, place in groups.items()}
        for index, one in held.items():
            self.recorder.keep(event, f"before.{index}", self.parameters.elements(index, one))
            local = self.parameters.local(index)
            if one.grad is not None:
                self.recorder.keep(event, f"grad.{index}", self.parameters.elements(index, one.grad))
                if local is not None:
                    self.recorder.keep(event, f"local.{index}", local)

    def _after_step(self, optimizer: Optimizer, args: Any, named: Any) -> None:
        event = self._open.pop(id(optimizer), None)
        if event is None or not self.recorder.here:
            return
        if self.recorder.observing:
            for group in optimizer.param_groups:
                for one in group["params"]:
                    index = self.parameters.index(one)
                    self.recorder.keep(event, f"after.{index}", self.parameters.elements(index, one))
        self.steps += 1
        self.on_step()

    # schedules

    def _wrap_schedulers(self) -> None:
        for kind in (LRScheduler, SequentialLR, ChainedScheduler, ReduceLROnPlateau):
            if "__init__" in vars(kind):
                setattr(kind, "__init__", self._made(vars(kind)["__init__"]))  # noqa: B010

    def _made(self, create: Any) -> Any:
        @functools.wraps(create)
        def init(one: Any, *args: Any, **named: Any) -> None:
            for kind in type(one).__mro__:  # its own steps, whatever class it has; not on the object: it may be saved
                step = vars(kind).get("step")
                if step is not None and not hasattr(step, "watched"):
                    kind.step = self._stepping(step)  # type: ignore[attr-defined]
            self._scheduling += 1
            try:
                create(one, *args, **named)
            finally:
                self._scheduling -= 1
            if self.recorder.here and not self._scheduling:
                self._schedule(one)

        return init

    def _schedule(self, scheduler: Any) -> int:
        """A schedule's number; a new one is noted."""
        for number, known in enumerate(self._schedulers):
            if known is scheduler:
                return number
        self._schedulers.append(scheduler)
        self._fresh.append(fresh(scheduler))
        number = len(self._schedulers) - 1
        self.recorder.note(
            "schedule",
            schedule=number,
            what="made",
            kind=type(scheduler).__name__,
            optimizer=self._number(getattr(scheduler, "optimizer", None)),
            where=where(),
        )
        return number

    def _stepping(self, step: Any) -> Any:
        @functools.wraps(step)
        def watched(one: Any, *args: Any, **named: Any) -> Any:
            inner = self._scheduling > 0  # part of another schedule, its first value, or the class below
            self._scheduling += 1
            try:
                return step(one, *args, **named)
            finally:
                self._scheduling -= 1
                if not inner and self.recorder.here:
                    rates = [float(group["lr"]) for group in one.optimizer.param_groups]
                    number = self._schedule(one)
                    self.recorder.note("schedule", schedule=number, what="step", rates=rates, where=where())

        watched.watched = True  # type: ignore[attr-defined]
        return watched

    def note_horizons(self) -> None:
        """How each schedule would go on: noted at the end, when it is known how often it was asked."""
        steps = [0] * len(self._schedulers)
        for event in self.recorder.events("schedule"):
            steps[event["schedule"]] += event["what"] == "step"
        self._scheduling += 1
        try:
            for number, one in enumerate(self._fresh):
                most = 2 * max(self.steps, steps[number], len(self.recorder.events("batch"))) + _BEYOND
                self.recorder.note("horizon", schedule=number, **horizon(one, most))
        finally:
            self._scheduling -= 1


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
