"""A rendezvous for torch's elastic agent that opens no door to other machines.

The agent's own ones listen on all interfaces, also when everything runs on one machine. This one serves its store on a
socket bound to loopback beforehand, and the ranks use the same store. One agent, one machine, no second rendezvous.
"""

from __future__ import annotations

from datetime import timedelta

from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

from squall.cluster.place import LOOPBACK
from squall.cluster.world import listener, open_store

BACKEND = "squall-loopback"
"""Name under which torch's launcher finds this rendezvous."""


class Loopback(RendezvousHandler):
    """One agent meets itself. Its store, and so everything that the ranks find through it, is on loopback."""

    def __init__(self, run_id: str, timeout: timedelta) -> None:
        self._run_id, self._timeout = run_id, timeout
        self._store: TCPStore | None = None

    def get_backend(self) -> str:
        """Its name."""
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        """Ranks connect to the agent's store and open none."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """Opens the store; the only agent has rank 0 of 1."""
        if self._store is None:
            self._store = open_store(listener(), self._timeout)
        return RendezvousInfo(
            PrefixStore(self._run_id, self._store), 0, 1, RendezvousStoreInfo(LOOPBACK, self._store.port)
        )

    def is_closed(self) -> bool:
        """Never: a job of one agent ends with its process."""
        return False

    def set_closed(self) -> None:
        """Nothing to tell anybody."""

    def num_nodes_waiting(self) -> int:
        """None: nobody can join."""
        return 0

    def get_run_id(self) -> str:
        """The job's name in torch's logs."""
        return self._run_id

    def shutdown(self) -> bool:
        """Closes the store."""
        self._store = None
        return True


def register() -> None:
    """Makes the rendezvous known to torch's launcher; a second call changes nothing."""
    rendezvous_handler_registry.register(BACKEND, _create)


def _create(parameters: RendezvousParameters) -> RendezvousHandler:
    return Loopback(parameters.run_id, timedelta(seconds=float(parameters.get("timeout", 900))))
