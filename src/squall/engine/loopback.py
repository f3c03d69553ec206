"""The store through which the ranks of a launch find each other: held by the launcher, on loopback only.

torch's own would listen on all interfaces, where anyone in reach could join. The port is taken before the ranks start;
the store itself serves later, as it needs torch, which the ranks load in the meantime: the kernel keeps those waiting
that come too early.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

from squall.cluster.place import LOOPBACK

_TIMEOUT = timedelta(seconds=900)
_LOG_LEVEL = "TORCH_CPP_LOG_LEVEL"


class Meeting:
    """A context in which ranks can meet.

    Attributes:
        port: on loopback.
    """

    def __init__(self) -> None:
        self._socket = socket.create_server((LOOPBACK, 0), backlog=socket.SOMAXCONN)
        self.port: int = self._socket.getsockname()[1]
        self._store: Any = None

    def serve(self) -> None:
        """From now on those who come are answered."""
        level = os.environ.get(_LOG_LEVEL)
        os.environ.setdefault(_LOG_LEVEL, "FATAL")  # read as torch is loaded: ranks that die are our message
        try:
            from squall.cluster.world import open_store
        finally:
            if level is None:
                del os.environ[_LOG_LEVEL]
        self._store = open_store(self._socket, _TIMEOUT)

    def __enter__(self) -> Meeting:
        return self

    def __exit__(self, *_: object) -> None:
        self._store = None
        self._socket.close()
