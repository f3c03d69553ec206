"""What ranks tell each other: collectives, with the numbers of short ones, and the gathering helpers of Accelerate."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from squall.verify.observe.blind import watching
from squall.verify.observe.recorder import Recorder, is_traced, where

_SHORT = 16  # numbers of an exchange that are kept
_NAMES = ("all_reduce", "reduce", "all_gather", "all_gather_into_tensor", "gather", "all_gather_object")


class Exchanges:
    """Watches the collectives that the script's own code, or a framework on its behalf, calls from Python."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._means: list[float] = []  # results of recent means outside of training, to recognise them

    def install(self) -> None:
        """From now on they are noted."""
        for name in _NAMES:
            call = getattr(dist, name)
            watched = self._watched(name, call)
            setattr(dist, name, watched)
            if hasattr(dist.distributed_c10d, name):
                setattr(dist.distributed_c10d, name, watched)
        self._watch_means()

    def _watched(self, name: str, call: Any) -> Any:
        @functools.wraps(call)
        def watched(*args: Any, **named: Any) -> Any:
            if is_traced() or not self.recorder.here or not self.recorder.observing:
                return call(*args, **named)
            given = _given(name, args, named)
            event = self._begins(
                name, given, named.get("op", args[1] if name == "all_reduce" and len(args) > 1 else None)
            )
            result = call(*args, **named)
            if name == "all_reduce" and result is None:  # else it is only under way
                self._ends(event, given)
            return result

        return watched

    @watching(None)
    def _begins(self, name: str, given: Any, op: Any) -> dict[str, Any]:
        event = self.recorder.note(
            "exchange",
            what=name,
            numel=given.numel() if isinstance(given, Tensor) else None,
            op="SUM" if op is None else str(op).rpartition(".")[2],
            grad=torch.is_grad_enabled(),
            where=where(),
        )
        if _is_short(given):
            event["values"] = _values(given)
            event["means"] = [one in self._means for one in event["values"]]
        return event

    @watching(None)
    def _ends(self, event: dict[str, Any] | None, given: Any) -> None:
        if event is not None and "values" in event:
            event["result"] = _values(given)

    def _watch_means(self) -> None:
        call = Tensor.mean

        @functools.wraps(call)
        def watched(given: Tensor, *args: Any, **named: Any) -> Any:
            result = call(given, *args, **named)
            if type(result) is Tensor and not is_traced() and self.recorder.observing:
                self._mean(given, result)
            return result

        watched.__module__, watched.__qualname__ = "torch", "Tensor.mean"  # where pickle finds it
        Tensor.mean = watched  # type: ignore[assignment, method-assign]

    @watching(None)
    def _mean(self, given: Tensor, result: Tensor) -> None:
        if _is_number(result) and given.numel() > 1:
            self._means = [*self._means[-63:], float(result)]


def _is_short(given: Any) -> bool:
    plain = isinstance(given, Tensor) and given.layout == torch.strided and not given.is_nested
    return plain and given.numel() <= _SHORT and not given.is_complex()


def _values(given: Tensor) -> list[float]:
    return [float(one) for one in given.detach().reshape(-1).tolist()]


def _is_number(result: Tensor) -> bool:
    plain = result.device.type == "cpu" and not result.is_complex() and not result.requires_grad
    return plain and result.numel() == 1


def _given(name: str, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    if name in ("all_gather", "all_gather_into_tensor"):
        return named.get("tensor", named.get("input_tensor", args[1] if len(args) > 1 else None))
    return named.get("tensor", args[0] if args else None)
