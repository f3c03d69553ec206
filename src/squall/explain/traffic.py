"""Bytes that the processes of a run send and hold, from the reduction tree and the network's size.

Exact reduction (`squall.reduce.exact`): a process holds a stack of partial sums of which one becomes the gradient,
sends each of its node sums to the owners of the other slices, and receives the others' sums of its own slice::

    sent        (nodes of mine) x (P - 1)/P        +  my finished slice to P - 1 others   = (P - 1)/P
    received    (nodes of all others) / P          +  the finished other slices           = (P - 1)/P

With one node a process both are 2 (P - 1)/P of the vector, as in any allreduce that is optimal in bytes (Goyal et al.
2017, section 4). Two processes of one node each send each other the whole vector instead: the same bytes, but the
other's lies beside one's own until it is added. Cuts at multiples of 64 elements, buckets of less than 64 KiB and the
few numbers that ride along are left out.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Traffic:
    """Of the process that has the most of each, in multiples of the gradient's bytes.

    Attributes:
        sent, received: in one step.
        partial_sums: vectors held beside the gradient.
        staging: what others send, held until it is added.
        even: whether all processes send and receive the same.
    """

    sent: float
    received: float
    partial_sums: int
    staging: float
    even: bool


def traffic(num_passes: int, processes: int, *, exact: bool) -> Traffic:
    """What one step costs a process.

    Arguments:
        num_passes: leaves of the reduction tree.
        processes: P; some have no pass in a step of fewer passes.
        exact: tree, or the collective's own order.
    """
    away = (processes - 1) / processes
    if not exact:
        return Traffic(2 * away, 2 * away, 0, 0.0, True)
    from squall.reduce import tree

    sums = [tree.local_sums(num_passes, *tree.share(num_passes, processes, rank)) for rank in range(processes)]
    nodes = [len(own.cover) for own in sums]
    sent = [own * away + away for own in nodes]
    staging = [(sum(nodes) - own) / processes for own in nodes]
    if processes == 2 and set(nodes) == {1}:
        return Traffic(1.0, 1.0, max(own.num_slots for own in sums) - 1, 1.0, True)
    return Traffic(
        sent=max(sent),
        received=max(staging) + away,
        partial_sums=max(own.num_slots for own in sums) - 1,
        staging=max(staging),
        even=len(set(nodes)) == 1,
    )
