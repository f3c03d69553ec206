"""Point-to-point messages between the ranks of one job, with deadlines that name whom they waited for.

Gloo matches messages by (source, tag), so buckets may overlap. NCCL has no tags and matches by order: there a batch
of sends and receives is issued as one group call, in the same order on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from squall.errors import RunError

Message = tuple[int, torch.Tensor]
"""A peer's rank and the tensor to send to it, or to fill with what it sends."""


class Group(Protocol):
    """The part of a torch process group that is used here."""

    def send(self, tensors: list[torch.Tensor], dst: int, tag: int) -> Any:
        """Starts a send."""

    def recv(self, tensors: list[torch.Tensor], src: int, tag: int) -> Any:
        """Starts a receive."""


@dataclass(frozen=True)
class Pending:
    """Messages under way: what they are for, and a (peer, work, direction) for each.

    The peer is None where one work stands for messages with several.
    """

    purpose: str
    works: tuple[tuple[int | None, Any, str], ...]
    keep: tuple[torch.Tensor, ...]

    def wait(self) -> None:
        """Blocks until all have arrived; a peer that is lost or too late is named."""
        for peer, work, direction in self.works:
            try:
                work.wait()
            except RuntimeError as error:
                raise PeerLostError(peer, self.purpose, direction, str(error)) from error


class PeerLostError(RunError):
    """Another rank went away or did not answer in time; `peer` is None where nobody can tell which."""

    def __init__(self, peer: int | None, purpose: str, direction: str, detail: str) -> None:
        self.peer, self.purpose, self.direction, self.detail = peer, purpose, direction, detail
        who = "another rank" if peer is None else f"rank {peer}"
        super().__init__(
            f"{who} was lost while this rank waited {direction} it {purpose}",
            [("detail", detail.splitlines()[0] if detail else "no detail")],
        )

    def __reduce__(self) -> tuple[type[PeerLostError], tuple[int | None, str, str, str]]:  # type: ignore[override]
        return type(self), (self.peer, self.purpose, self.direction, self.detail)


def is_ordered(group: Any) -> bool:
    """Whether the group matches messages by their order (NCCL) instead of by tag."""
    return bool(getattr(group, "name", lambda: "")() == "nccl")


def exchange(
    group: Group, sends: Sequence[Message], receives: Sequence[Message], tag: int, purpose: str, *, ordered: bool
) -> tuple[Pending, Pending]:
    """Starts sends and receives under one tag; messages between two ranks keep their order.

    Arguments:
        ordered: what `is_ordered` says of the group; then the tag is of no use.

    Returns:
        What is pending of the sends, and of the receives.
    """
    if ordered:
        return _grouped(group, sends, receives, purpose)
    got = tuple((peer, group.recv([tensor], peer, tag), "for") for peer, tensor in receives)
    sent = tuple((peer, group.send([tensor], peer, tag), "on") for peer, tensor in sends)
    return (
        Pending(purpose, sent, tuple(tensor for _, tensor in sends)),
        Pending(purpose, got, tuple(tensor for _, tensor in receives)),
    )


def _grouped(
    group: Any, sends: Sequence[Message], receives: Sequence[Message], purpose: str
) -> tuple[Pending, Pending]:
    peers = {peer for peer, _ in (*sends, *receives)}
    if not peers:
        return Pending(purpose, (), ()), Pending(purpose, (), ())
    group._start_coalescing()  # of a Backend, which `World.group` is: a ProcessGroup's would take the device
    for peer, tensor in receives:
        group.recv([tensor], peer, 0)
    for peer, tensor in sends:
        group.send([tensor], peer, 0)
    work = group._end_coalescing()
    only = peers.pop() if len(peers) == 1 else None
    return Pending(purpose, (), tuple(t for _, t in sends)), Pending(
        purpose, ((only, work, "for"),), tuple(t for _, t in receives)
    )
