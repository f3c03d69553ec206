"""What a minibatch summed to, read only when somebody asks.

On a GPU the numbers are copied while the next step is already being queued: reading them at once would make the
processor wait for the device in every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch

FIXED = 4
"""The tail begins with the sums of loss, count, samples and passes."""

VOTES = ("stop", "resize", "busy", "due")
"""Then come the ranks' votes: asked to leave; to be started again in another number; still saving; time to save."""


def flags_at(num_processes: int) -> int:
    """Where, after the votes and each rank's busy seconds, the parameters' flags begin."""
    return FIXED + len(VOTES) + num_processes


class StepSums:
    """The sums over all passes of all processes.

    Arguments:
        tail: float64 vector: loss, count, samples, passes, votes, busy seconds of each rank, ..., then (sum, count) of
            each metric from `metrics_at`.
        num_processes: ranks of the job.
    """

    def __init__(
        self, tail: torch.Tensor, metric_names: Sequence[str], metrics_at: int, num_processes: int = 1
    ) -> None:
        self._names, self._metrics_at, self._size = tuple(metric_names), metrics_at, num_processes
        self._copied: torch.cuda.Event | None = None
        if tail.is_cuda:
            self._host = torch.empty(tail.shape, dtype=tail.dtype, pin_memory=True)
            self._host.copy_(tail, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
        else:
            self._host = tail.clone()

    @cached_property
    def _values(self) -> list[float]:
        if self._copied is not None:
            self._copied.synchronize()
        values: list[float] = self._host.tolist()
        return values

    @property
    def loss(self) -> float:
        """Sum of the losses."""
        return self._values[0]

    @property
    def count(self) -> float:
        """What the losses were summed over: samples, unless they brought their own count."""
        return self._values[1]

    @property
    def samples(self) -> float:
        """Samples of the minibatch."""
        return self._values[2]

    @property
    def votes(self) -> dict[str, float]:
        """How many ranks vote for what."""
        return dict(zip(VOTES, self._values[FIXED : FIXED + len(VOTES)], strict=True))

    @property
    def busy(self) -> list[float]:
        """Seconds that each rank read and computed, without its waits; 0 where a rank had no pass."""
        start = FIXED + len(VOTES)
        return self._values[start : start + self._size]

    @property
    def metrics(self) -> dict[str, tuple[float, float]]:
        """(sum, count) of each metric."""
        rest = self._values[self._metrics_at :]
        return {name: (rest[2 * i], rest[2 * i + 1]) for i, name in enumerate(self._names)}
