"""What a test may leave behind: nothing. Looked at from the operating system's side."""

from __future__ import annotations

import os
import threading
from multiprocessing import forkserver, resource_tracker
from pathlib import Path


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


def threads() -> frozenset[str]:
    """Names of the threads that Python knows, without the main one."""
    return frozenset(thread.name for thread in threading.enumerate() if thread is not threading.main_thread())


def environment() -> dict[str, str]:
    """The environment, without what pytest and torch set by themselves."""
    own = {"PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR"}  # pytest and torch set them by themselves
    return {key: value for key, value in os.environ.items() if key not in own}
