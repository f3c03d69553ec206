"""Number formats of a run: autocast around the model's forward, loss scaling for float16, tf32 switches.

bf16 and fp16 run the model under autocast and hand its floating-point outputs back in float32, so that the loss is
computed in float32 wherever the user computes it. fp16 scales the loss, because small gradients underflow; a step
whose gradients overflow is left out (all `.grad` are None, so that any optimiser leaves the weights alone) and the
scale is halved; after 2,000 good steps it doubles (Micikevicius et al. 2018, section 3.2).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from squall.errors import InputError
from squall.run.spec import Precision

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check(precision: Precision, device: torch.device) -> None:
    """Refuses a precision that the device does not have.

    Raises:
        InputError: fp16 or tf32 on a CPU.
    """
    if device.type == "cpu" and precision in ("fp16", "tf32"):
        raise InputError(
            f"precision={precision} needs a CUDA device",
            [("found", "a CPU"), ("to do", "precision=bf16 or precision=fp32")],
        )


def wrap_forward(model: nn.Module, precision: Precision, device: torch.device) -> Callable[[], None]:
    """Lets `model(...)` compute under autocast and return float32; only the instance is changed.

    Returns:
        Gives the model its own forward back.
    """
    dtype = _AUTOCAST.get(precision)
    if dtype is None:
        return lambda: None
    own = model.__dict__.get("forward")
    inner = model.forward

    @functools.wraps(inner)
    def forward(*arguments: Any, **named: Any) -> Any:
        with torch.autocast(device.type, dtype):
            return _to_float32(inner(*arguments, **named))

    def unwrap() -> None:
        del model.forward
        if own is not None:
            model.forward = own

    model.forward = forward
    return unwrap


class LossScale:
    """The factor on the loss; 1 and inert unless the precision is fp16."""

    def __init__(self, precision: Precision) -> None:
        self.active = precision == "fp16"
        self.factor = 65536.0 if self.active else 1.0
        self.overflows = 0
        self._good_steps = 0

    def note(self, finite: bool) -> None:
        """Adapts the factor after a step."""
        if not finite:
            self.factor = max(self.factor / 2, 1.0)
            self.overflows += 1
            self._good_steps = 0
            return
        self._good_steps += 1
        if self._good_steps == 2000:
            self.factor *= 2
            self._good_steps = 0


def _to_float32(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_to_float32(item) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(_to_float32(item) for item in value)
    if isinstance(value, Mapping):
        converted = {key: _to_float32(item) for key, item in value.items()}
        return type(value)(**converted) if hasattr(value, "to_tuple") else converted
    return value
