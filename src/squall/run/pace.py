"""How fast each rank computes, and which one the others wait for."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import lru_cache

from squall.data.order import StepPlan
from squall.reduce.tree import share


def samples_by_rank(plan: StepPlan, num_processes: int) -> tuple[int, ...]:
    """Samples of a step that each rank computes."""
    return _samples(plan.worker_sizes, plan.fuse, num_processes)


@lru_cache(maxsize=16)
def _samples(worker_sizes: tuple[int, ...], fuse: int, num_processes: int) -> tuple[int, ...]:
    num_passes = -(-len(worker_sizes) // fuse)
    shares = [share(num_passes, num_processes, rank) for rank in range(num_processes)]
    return tuple(sum(worker_sizes[first * fuse : stop * fuse]) for first, stop in shares)


def slowest(pace: Sequence[float]) -> tuple[int, float]:
    """The slowest rank, and how many times the median of all ranks it takes for a sample.

    Arguments:
        pace: seconds a sample, by rank; nan where a rank computed none.

    Example:
        >>> slowest([0.010, 0.011, 0.022, 0.010])
        (2, 2.0952380952380953)
    """
    known = {rank: seconds for rank, seconds in enumerate(pace) if math.isfinite(seconds)}
    if len(known) < 2:
        return 0, 1.0
    rank = max(known, key=lambda rank: known[rank])
    return rank, known[rank] / (statistics.median(known.values()) or 1.0)
