"""Words that the terminal uses of every run of roles: numbers with their nouns, a column of the table of epochs."""

from __future__ import annotations

from collections.abc import Callable

from squall.records import EpochEnded, Started
from squall.units import count

Column = tuple[str, int, Callable[[EpochEnded], str]]
"""A column of the table of epochs: title, width, cell."""


def many(number: int, word: str, ending: str = "s") -> str:
    """ "1 shard", "2 shards"."""
    return f"{count(number)} {word}{'' if number == 1 else ending}"


def hosted(started: Started, threads: int) -> str:
    """ "2 replicas x 1 thread and 2 shards on Ray", "50 replicas and 4 shards in simulated time"."""
    replicas = many(started.replicas, "replica")
    if started.engine == "simulated":
        return f"{replicas} and {many(started.shards, 'shard')} in simulated time"
    each = f" x {many(threads, 'thread')}" if threads else ""
    return f"{replicas}{each} and {many(started.shards, 'shard')} on Ray"


def stalled(epoch: EpochEnded) -> str:
    """The share of the replicas' time that they stood still."""
    whole = sum(epoch.spent.values())
    return f"{100 * epoch.spent.get('communication', 0.0) / whole:.1f} %" if whole > 0 else "-"
