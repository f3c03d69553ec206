"""`--profile`: a trace of a few steps by torch's profiler, for chrome://tracing or Perfetto; one file a rank.

A profiler slows what it looks at and takes memory for each event, so it looks at a few steps after the first ones, in
which memory is allocated and kernels are chosen, and is gone.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import profiler

FOLDER = "profile"
_SKIPPED, _WARM, _LOOKED_AT = 3, 2, 5


class Profile:
    """Looks at steps of one rank.

    Arguments:
        folder: of the run; the trace is written into `profile/` in it.
        rank: of this process.
        device: where it computes.
    """

    def __init__(self, folder: Path, rank: int, device: torch.device) -> None:
        self._quiet = "KINETO_LOG_LEVEL" not in os.environ
        if self._quiet:
            os.environ["KINETO_LOG_LEVEL"] = "99"  # else it prints its start and its stop
        self.path = folder / FOLDER / f"rank-{rank}.json"
        activities = [profiler.ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(profiler.ProfilerActivity.CUDA)
        schedule = profiler.schedule(wait=_SKIPPED, warmup=_WARM, active=_LOOKED_AT, repeat=1)
        self._profiler: Any = profiler.profile(
            activities=activities, schedule=schedule, on_trace_ready=self._write, record_shapes=True
        )
        self._profiler.start()

    def step(self) -> None:
        """A step is over."""
        if self._profiler is not None:
            self._profiler.step()

    def close(self) -> None:
        """Gives the profiler back; of a run shorter than it wanted what there is is written."""
        own, self._profiler = self._profiler, None
        if own is not None:
            own.stop()
        if self._quiet:
            os.environ.pop("KINETO_LOG_LEVEL", None)

    def _write(self, looked: Any) -> None:
        self._profiler = None
        with suppress(OSError, RuntimeError):  # a full disk ends no run
            self.path.parent.mkdir(parents=True, exist_ok=True)
            looked.export_chrome_trace(str(self.path))
