"""How a program of an asynchronous strategy ended, as its coordinator says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Summary:
    """What a program of replicas and shards comes to.

    Attributes:
        outcome: finished, or stopped because somebody asked.
        snapshot: number of the shards' last one: the final weights.
        values: for result.json: what was computed by whom, and that it adds up.
        seconds: of the program.
        done: minibatches that are settled, or iterations.
        counters: values of the integer buffers, where no shard keeps them.
    """

    outcome: str
    snapshot: int
    values: dict[str, Any]
    seconds: float
    done: int
    counters: tuple[int, ...] = ()
