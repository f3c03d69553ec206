"""The exponential moving average of a model's weights, kept beside it and swapped in for evaluation.

After each update the averages a move towards the weights w::

    a  <-  a + (1 - d_t) * (w - a)        d_t = min(decay, t / (t + 9)),  t = updates before this one

The factor d_t is the warm-up. d_0 = 0, so the random initial weights leave no trace at all; then the window grows with
the run (about its last tenth) until `decay` takes over. With a constant d a short run would be measured half at its
beginning. Floating-point buffers (running statistics) are averaged as weights are; integers are left alone.

Source: Polyak and Juditsky 1992; the growing window follows TensorFlow's ExponentialMovingAverage, started at 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from squall.errors import InputError


class Ema:
    """Averages of named tensors.

    Arguments:
        named_tensors: (name, tensor) pairs, the live weights and buffers; others than floating point are skipped.
            Averages of float16 and bfloat16 tensors are kept in float32: in their own type small moves would be lost.
        decay: weight of the past once the run is long, in [0, 1); 0.9998 averages about 5,000 updates.

    Raises:
        InputError: `decay` is out of range.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> ema = Ema([*model.named_parameters(), *model.named_buffers()], decay=0.99)
        >>> ema.update()                           # after each optimizer.step()
        >>> with ema.swapped():
        ...     output = model(torch.ones(1, 2))   # by the averages
    """

    def __init__(self, named_tensors: Iterable[tuple[str, Tensor]], decay: float) -> None:
        if not 0 <= decay < 1:
            raise InputError(f"ema={decay}", [("to do", "give a decay from 0 to below 1, such as 0.999")])
        self.decay = decay
        self.num_updates = 0
        self._live = {name: tensor for name, tensor in named_tensors if tensor.is_floating_point()}
        self._averages = {name: _wide(tensor).clone() for name, tensor in self._live.items()}

    @property
    def averages(self) -> dict[str, Tensor]:
        """The averages under the tensors' names: what evaluation uses and a checkpoint stores."""
        return dict(self._averages)

    @torch.no_grad()
    def update(self) -> None:
        """Moves the averages towards the live tensors; call it once after each update of these."""
        if self._live:
            # One rounding an operation, so that the bits do not depend on how a vector is cut into lanes and tails.
            moves = torch._foreach_sub([_wide(tensor) for tensor in self._live.values()], list(self._averages.values()))
            torch._foreach_mul_(moves, 1 - self._decay_now())
            torch._foreach_add_(list(self._averages.values()), moves)
        self.num_updates += 1

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The live tensors hold the averages inside the block, and their own values, bit for bit, after it."""
        kept = {name: tensor.detach().clone() for name, tensor in self._live.items()}
        self._write(self._averages)
        try:
            yield
        finally:
            self._write(kept)

    @torch.no_grad()
    def load(self, averages: Mapping[str, Tensor], num_updates: int) -> None:
        """Takes over stored averages.

        Arguments:
            averages: as `averages` gave them.
            num_updates: as `num_updates` was.

        Raises:
            InputError: names or shapes are not those of the live tensors; lists every difference.
        """
        rows = [(name, "missing in the stored averages") for name in self._averages if name not in averages]
        rows += [(name, "stored, but the model has no such tensor") for name in averages if name not in self._averages]
        for name, average in self._averages.items():
            if name in averages and averages[name].shape != average.shape:
                rows.append((name, f"stored {tuple(averages[name].shape)}, the model has {tuple(average.shape)}"))
        if rows:
            raise InputError("the stored averages are not of this model", rows)
        for name, average in self._averages.items():
            average.copy_(averages[name])
        self.num_updates = num_updates

    def _decay_now(self) -> float:
        return min(self.decay, self.num_updates / (self.num_updates + 9))

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, tensor in self._live.items():
            tensor.copy_(values[name])


def _wide(tensor: Tensor) -> Tensor:
    """The tensor in at least float32."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
