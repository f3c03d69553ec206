"""Which numbers of processes this machine has GPUs for: a script that takes one a rank crashes with more.

Where some numbers fit, the others are left out, and that is said. Where none does, all are tried: there are scripts
that leave GPUs alone, or share one.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from squall.verify.finding import Trouble

ON_CPU = "CUDA_VISIBLE_DEVICES= squall verify ... runs it on the CPU, with any number of processes"


def count() -> int:
    """GPUs that ranks would see; the driver is asked, and nothing is initialised."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.cuda.device_count()


def fitting(processes: Sequence[int], gpus: int) -> tuple[tuple[int, ...], tuple[Trouble, ...]]:
    """The numbers that are run, and what is to be said of the others."""
    fit = tuple(number for number in processes if number <= gpus)
    over = tuple(number for number in processes if number > gpus)
    if not fit or not over:
        return tuple(processes), ()
    listed = " and ".join(map(str, over))
    trouble = Trouble(
        what="fewer GPUs than processes",
        says=f"not run with {listed} processes: this machine has {gpus} GPU{'' if gpus == 1 else 's'}",
        processes=over[0],
        rows=(("to do", ON_CPU),),
        fatal=False,
    )
    return fit, (trouble,)
