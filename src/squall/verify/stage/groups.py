"""Process groups that live as long as their process, so that none can hang in its destructor.

A thread of Gloo lets go of a message's tensors some time after the wait for the message is over, and needs Python's
lock for that; the group's destructor waits for the thread. Where DistributedDataParallel holds the last reference, as
when a main function ends with `destroy_process_group` and returns, the destructor runs under Python's lock and both
wait for ever (pytorch#56297; half of the runs of one script under torchrun). That is no fault of the script.
"""

from __future__ import annotations

import functools
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

_kept: list[object] = []


def keep_groups() -> None:
    """From now on a group that is destroyed is shut down as ever, but its memory stays until the process ends."""
    destroy = distributed_c10d.destroy_process_group

    @functools.wraps(destroy)
    def destroy_process_group(*arguments: Any, **options: Any) -> None:
        _kept.extend(distributed_c10d._world.pg_map)
        destroy(*arguments, **options)

    for module in (distributed_c10d, dist):
        module.destroy_process_group = destroy_process_group  # type: ignore[attr-defined]
