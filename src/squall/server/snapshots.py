"""Where shards keep their snapshots: in memory for simulated programs, on disk for others (`disk`)."""

from __future__ import annotations

from typing import NoReturn

from squall.errors import RunError
from squall.server.shard import Snapshot


class InMemory:
    """Snapshots of a program in one process: they outlive its roles, as a disk would.

    Arguments:
        first: of each shard, the state before the first push.
        keep: the newest so many of each shard stay.
    """

    def __init__(self, first: list[Snapshot], keep: int = 2) -> None:
        self._kept = [[snapshot] for snapshot in first]
        self._keep = keep

    def __reduce__(self) -> NoReturn:
        """Refuses to leave this process: a shard elsewhere would save into a copy that nobody reads."""
        raise RunError(
            "snapshots in memory cannot be sent to another process",
            [("rule", "shards and driver look at the same ones"), ("to do", "OnDisk, in a folder that both see")],
        )

    def newest(self, shard: int) -> Snapshot:
        """The last one that was saved whole."""
        return self._kept[shard][-1]

    def read(self, shard: int, number: int) -> Snapshot:
        """One of them.

        Raises:
            RunError: it is not kept, or not any more.
        """
        for snapshot in self._kept[shard]:
            if snapshot.number == number:
                return snapshot
        raise RunError(f"there is no snapshot {number} of shard {shard}")

    def save(self, shard: int, snapshot: Snapshot) -> int:
        """Keeps one."""
        self._kept[shard] = [*self._kept[shard], snapshot][-self._keep :]
        return sum(tensor.numel() * tensor.element_size() for tensor in snapshot.tensors.values())
