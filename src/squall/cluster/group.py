"""A process group that really ends when it is closed, whoever still refers to it.

A thread of Gloo lets go of a message's tensors some time after the wait for the message is over, and needs Python's
lock for that. If the interpreter has begun to end by then, the process aborts ("terminate called without an active
exception"): seen after 9 of 40 evaluations on busy cores. Only the group's destructor waits for these threads, and it
runs when the last reference goes; reductions, which refer to the group, may live in cycles or in the user's hands.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

from squall.errors import RunError

_PARTING_S = 1.0
_FAILING_S = 0.25
"""Where an error ends the job: a thread that waits for a lost peer does not end before its own deadline."""


class Group:
    """A torch process group; whatever is asked of it is asked of the backend that it holds until it is closed.

    Arguments:
        backend: Gloo's or NCCL's; nobody else may keep it.
    """

    def __init__(self, backend: Any) -> None:
        self._held = [backend]

    def __getattr__(self, name: str) -> Any:
        if not self._held:
            raise RunError("the job's processes were asked for a message after they had parted")
        return getattr(self._held[0], name)

    def close(self) -> None:
        """Shuts the backend down and waits until its threads are gone; a second call does nothing."""
        if self._held:
            self._held[0].shutdown()
            drop = threading.Thread(target=self._held.clear, daemon=True)
            drop.start()
            drop.join(_FAILING_S if sys.exc_info()[0] else _PARTING_S)
