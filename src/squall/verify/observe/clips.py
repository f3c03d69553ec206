"""Clipping of gradients: what was clipped, to which limit, and the norm that was found."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from squall.verify.observe.blind import watching
from squall.verify.observe.parameters import Parameters
from squall.verify.observe.recorder import Recorder, where


class Clips:
    """Watches `torch.nn.utils.clip_grad_*` of one rank."""

    def __init__(self, recorder: Recorder, parameters: Parameters) -> None:
        self.recorder, self.parameters = recorder, parameters

    def install(self) -> None:
        """From now on every clipping is noted, with the gradients as they come to it."""
        from torch.nn import utils
        from torch.nn.utils import clip_grad

        for name, most in (("clip_grad_norm_", "max_norm"), ("clip_grad_value_", "clip_value")):
            watched = self._watched(getattr(clip_grad, name), name, most)
            setattr(clip_grad, name, watched)
            setattr(utils, name, watched)

    def _watched(self, clip: Any, name: str, most: str) -> Any:
        @functools.wraps(clip)
        def watched(parameters: Any, *args: Any, **named: Any) -> Any:
            if not self.recorder.here or not self.recorder.observing:
                return clip(parameters, *args, **named)
            given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
            event = self._begins(given, how=name, limit=float(named.get(most, args[0] if args else 0.0)))
            result = clip(given, *args, **named)
            self._ends(event, result)
            return result

        return watched

    @watching(None)
    def _begins(self, /, parameters: list[Tensor], **fields: Any) -> dict[str, Any]:
        held = {self.parameters.index(one): one.grad for one in parameters if one.grad is not None}
        event = self.recorder.note("clip", parameters=list(held), where=where(), **fields)
        for index, gradient in held.items():
            self.recorder.keep(event, f"grad.{index}", self.parameters.elements(index, gradient))
        return event

    @watching(None)
    def _ends(self, event: dict[str, Any] | None, result: Any) -> None:
        if event is not None and isinstance(result, Tensor):
            event["norm"] = float(result.full_tensor() if hasattr(result, "full_tensor") else result)
