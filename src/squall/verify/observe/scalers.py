"""Loss scaling: when a `GradScaler` multiplies a loss, takes the scale out again, steps or leaves out a step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from squall.verify.observe.blind import watching
from squall.verify.observe.recorder import Recorder, where


class Scalers:
    """Watches the loss scalers of one rank.

    Arguments:
        number: an optimiser's number.
        steps: how many updates were made until now.
    """

    def __init__(self, recorder: Recorder, number: Callable[[Any], int], steps: Callable[[], int]) -> None:
        self.recorder, self.number, self.steps = recorder, number, steps

    def install(self) -> None:
        """From now on every call of a scaler is noted."""
        scaler = torch.amp.GradScaler
        scale, unscale, step, update = scaler.scale, scaler.unscale_, scaler.step, scaler.update

        def scale_(one: Any, outputs: Any) -> Any:
            result = scale(one, outputs)
            self._note("scale", one)
            return result

        def unscale_(one: Any, optimizer: Any) -> Any:
            self._note("unscale", one, optimizer=self.number(optimizer))
            return unscale(one, optimizer)

        def step_(one: Any, optimizer: Any, *args: Any, **named: Any) -> Any:
            before = self.steps()
            self._note("step", one, optimizer=self.number(optimizer))
            if getattr(optimizer, "_step_supports_amp_scaling", False):  # it takes the scale out itself, as it steps
                self._note("unscale", one, optimizer=self.number(optimizer))
            result = step(one, optimizer, *args, **named)
            if self.steps() == before:
                self._note("skipped", one, optimizer=self.number(optimizer))
            return result

        def update_(one: Any, new_scale: Any = None) -> Any:
            result = update(one, new_scale)
            self._note("update", one)
            return result

        for name, call in (("scale", scale_), ("unscale_", unscale_), ("step", step_), ("update", update_)):
            setattr(scaler, name, functools.wraps(getattr(scaler, name))(call))

    @watching(None)
    def _note(self, /, what: str, scaler: Any, **fields: Any) -> None:
        if self.recorder.here and scaler.is_enabled():
            self.recorder.note("scaler", what=what, scale=scaler.get_scale(), where=where(), **fields)
