"""What a test may leave behind: nothing. Looked at from the operating system's side."""

from __future__ import annotations

import os
import threading
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

import torch


def children() -> frozenset[int]:
    """Child processes of this one, without the fork server that the tests' own jobs come from."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            found.update(int(pid) for pid in (task / "children").read_text().split())
        except FileNotFoundError:
            continue
    kept = (forkserver._forkserver._forkserver_pid, resource_tracker._resource_tracker._pid)  # type: ignore[attr-defined]
    return frozenset(found - {pid for pid in kept if pid is not None})


def state() -> dict[str, object]:
    """Everything a test could leave changed, by name; the environment as hashes, since it may hold secrets."""
    environment = {
        f"environment {key}": hash(value)
        for key, value in os.environ.items()
        if key not in ("PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR")  # pytest and torch set them by themselves
    }
    return {
        "children": children(),
        "threads": frozenset(thread.name for thread in threading.enumerate()),
        "folder": os.getcwd(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
        "variables": tuple(sorted(environment)),
        **environment,
    }


def join_new_threads(before: dict[str, object], timeout_s: float = 5.0) -> None:
    """Waits for threads that are on their way out (a queue's feeder after its queue was closed)."""
    known = before["threads"]
    for thread in threading.enumerate():
        if isinstance(known, frozenset) and thread.name not in known:
            thread.join(timeout_s)
