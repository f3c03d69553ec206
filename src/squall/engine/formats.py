"""How fast this device computes in each number and memory format: a small convolutional step, tried and timed.

Which formats a processor gains from differs between models of one maker (bfloat16 with and without matrix units), and
no flag says how much. A recipe's formats change bits, so that none is chosen behind its back; this says what to choose.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

_ROUNDS = 5
_WIDTH, _SIDE, _BATCH = 64, 32, 32


@dataclass(frozen=True)
class Format:
    """One way to compute.

    Attributes:
        name: as people say it.
        fields: of a recipe that ask for it, as typed after `squall train`.
        dtype: of autocast, None for float32.
        channels_last: memory format.
        tf32: whether a GPU may round the factors of products.
    """

    name: str
    fields: str
    dtype: torch.dtype | None = None
    channels_last: bool = False
    tf32: bool = False


PLAIN = Format("float32", "compute.precision=fp32")
_LAST = " compute.channels_last=true"
_OTHERS = (
    Format("float32 channels-last", PLAIN.fields + _LAST, channels_last=True),
    Format("bfloat16", "compute.precision=bf16", torch.bfloat16),
    Format("bfloat16 channels-last", "compute.precision=bf16" + _LAST, torch.bfloat16, channels_last=True),
)
_ON_CUDA = (Format("tf32 channels-last", "compute.precision=tf32" + _LAST, channels_last=True, tf32=True),)


def speeds(device: torch.device) -> dict[Format, float]:
    """Times a forward and backward pass in each format, one thread on a CPU.

    Returns:
        How many times as fast as plain float32 each is (the median of interleaved rounds); `PLAIN` is 1.
    """
    formats = (PLAIN, *_OTHERS, *(_ON_CUDA if device.type == "cuda" else ()))
    threads, tf32 = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    torch.set_num_threads(1)
    try:
        trials = {each: _Trial(each, device) for each in formats}
        times: dict[Format, list[float]] = {each: [] for each in formats}
        for number in range(1 + _ROUNDS):
            for each, trial in trials.items():
                seconds = trial.step()
                if number:  # the first chooses kernels
                    times[each].append(seconds)
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.allow_tf32 = tf32
    plain = statistics.median(times[PLAIN])
    return {each: plain / statistics.median(taken) for each, taken in times.items()}


class _Trial:
    """Two blocks of convolution, normalisation and ReLU on random images, in one format."""

    def __init__(self, wanted: Format, device: torch.device) -> None:
        self._wanted, self._device = wanted, device
        layers = [
            layer
            for inputs in (3, _WIDTH)
            for layer in (nn.Conv2d(inputs, _WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(_WIDTH), nn.ReLU())
        ]
        memory = torch.channels_last if wanted.channels_last else torch.contiguous_format
        self._model = nn.Sequential(*layers).to(device=device, memory_format=memory)  # type: ignore[call-overload]
        self._images = torch.ones(_BATCH, 3, _SIDE, _SIDE, device=device).contiguous(memory_format=memory)

    def step(self) -> float:
        """Seconds of one forward and backward pass."""
        torch.backends.cudnn.allow_tf32 = self._wanted.tf32
        self._wait()
        start = time.perf_counter()
        with torch.autocast(self._device.type, self._wanted.dtype, enabled=self._wanted.dtype is not None):
            out = self._model(self._images)
        F.mse_loss(out.float(), torch.zeros_like(out, dtype=torch.float32)).backward()  # type: ignore[no-untyped-call]
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
