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

from squall.data.nested import each_output
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

    def unwrap() -> None:
        del model.forward
        if own is not None:
            model.forward = own

    model.forward = _Autocast(model, own, device.type, dtype)
    return unwrap


class _Autocast:
    """Stands in for the `forward` of one model; a copy of the model holds a copy of it, which computes with the copy.

    `__wrapped__` is the forward underneath: a method bound to the model (deepcopy binds it to the copy), or what the
    instance held before.
    """

    __wrapped__: Callable[..., Any]

    def __init__(
        self, module: nn.Module, given: Callable[..., Any] | None, device_type: str, dtype: torch.dtype
    ) -> None:
        inner = module.forward if given is None else given
        functools.update_wrapper(self, inner, updated=())  # its name, text and signature
        self.device_type, self.dtype = device_type, dtype

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        with torch.autocast(self.device_type, self.dtype):
            return each_output(_to_float32, self.__wrapped__(*arguments, **named))


class LossScale:
    """The factor on the loss; 1 and inert unless the precision is fp16.

    Arguments:
        num_samples: of a pass. 65536 suits a mean; the loss is a sum over the pass, so that its gradients are that much
            larger and the factor starts that much smaller (at a power of two, at least 1).
    """

    def __init__(self, precision: Precision, num_samples: int = 1) -> None:
        self.active = precision == "fp16"
        self.factor = max(65536.0 / 2 ** (num_samples - 1).bit_length(), 1.0) if self.active else 1.0
        self.overflows = 0
        self._good_steps = 0

    def state(self) -> dict[str, float]:
        """For a checkpoint."""
        return {"factor": self.factor, "overflows": self.overflows, "good_steps": self._good_steps}

    def load(self, state: Mapping[str, float]) -> None:
        """Goes on from a checkpoint."""
        self.factor, self.overflows = float(state["factor"]), int(state["overflows"])
        self._good_steps = int(state["good_steps"])

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


def _to_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
