"""Where shards keep their snapshots: in memory for simulated programs, on disk for others (`disk`)."""

from __future__ import annotations

from math import inf
from typing import NoReturn

from squall.errors import RunError
from squall.server.shard import Snapshot


class InMemory:
    """Snapshots of a program in one process: they outlive its roles, as a disk would.

    Arguments:
        first: of each shard, the state before the first push.
        keep: the newest so many of each shard stay; None: all, until somebody says `forget`.
    """

    def __init__(self, first: list[Snapshot], keep: int | None = 2) -> None:
        self._kept = [[snapshot] for snapshot in first]
        self._keep = keep

    def beside(self) -> InMemory:
        """Others of the same shards, all of which are kept; none yet."""
        found = InMemory([], keep=None)
        found._kept = [[] for _ in self._kept]
        return found

    def __reduce__(self) -> NoReturn:
        """Refuses to leave this process: a shard elsewhere would save into a copy that nobody reads."""
        raise RunError(
            "snapshots in memory cannot be sent to another process",
            [("rule", "shards and driver look at the same ones"), ("to do", "OnDisk, in a folder that both see")],
        )

    def newest(self, shard: int) -> Snapshot:
        """The last one that was saved whole."""
        return self._kept[shard][-1]

    def numbers(self, shard: int) -> list[int]:
        """Those that there are, ascending."""
        return sorted(snapshot.number for snapshot in self._kept[shard])

    def read(self, shard: int, number: int) -> Snapshot:
        """One of them.

        Raises:
            RunError: it is not kept, or not any more.
        """
        for snapshot in self._kept[shard]:
            if snapshot.number == number:
                return snapshot
        raise RunError(f"there is no snapshot {number} of shard {shard}")

    def forget(self, shard: int, below: int = 0, above: float = inf) -> None:
        """Removes those whose numbers are smaller, or larger."""
        self._kept[shard] = [snapshot for snapshot in self._kept[shard] if below <= snapshot.number <= above]

    def save(self, shard: int, snapshot: Snapshot) -> int:
        """Keeps one."""
        self._kept[shard] = [*self._kept[shard], snapshot][-(self._keep or 0) :]
        return sum(tensor.numel() * tensor.element_size() for tensor in snapshot.tensors.values())
