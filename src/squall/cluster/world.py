"""The ranks of one job, connected: a process group held as an object, a store for a few lines of text, a device.

torch's default group is a global that the user's code or another library may want, so it is never made: `World` holds
its own Gloo (CPU) or NCCL (CUDA) group. On one machine every socket listens on loopback: torch's defaults would listen
on all interfaces (its TCPStore even for host 127.0.0.1), where anyone in reach could join. A process that nobody
started as one of several is a world of one: no group, no store, no sockets.

    environment -> Place -> store (launcher's, or opened by rank 0) -> group over the store -> World
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from squall.cluster.group import Group
from squall.cluster.lifeline import tie_to_launcher
from squall.cluster.place import LOOPBACK, Place, find, is_loopback
from squall.errors import InputError, RunError

_RETRY_S = 0.05
_JOINED = itertools.count()  # a script may train twice: the launcher's store still holds the first job's addresses


class PeerMissingError(RunError):
    """Another rank did not come, or did not say in time what was waited for."""


@dataclass(frozen=True)
class World:
    """This process among the ranks of its job.

    Arguments:
        rank: its number, 0 to size - 1.
        size: processes of the job.
        local_rank: its number on its machine.
        local_size: processes on its machine.
        device: where it computes.
        group: collectives and point-to-point messages (``send([t], dst, tag)``, ``recv``); None in a world of one.
        store: text under keys, for the whole job; None in a world of one.
        node: name of its machine within the job.
        timeout_s: seconds after which a wait for other ranks gives up.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    group: Group | None
    store: Store | None
    node: str = "0"
    timeout_s: float = 300.0
    _own: dict[str, str] = field(default_factory=dict, repr=False, compare=False)
    _asked: dict[str, int] = field(default_factory=dict, repr=False, compare=False)

    def fresh(self, name: str) -> str:
        """A key that this job has not used; ranks that ask for the same names in the same order get the same keys."""
        self._asked[name] = self._asked.get(name, 0) + 1
        return f"{name}/{self._asked[name]}"

    def put(self, key: str, value: str) -> None:
        """Says something to the processes of this machine; a key is used once."""
        self._own[key] = value
        if self.store is not None:
            self.store.set(self._local(key), value)

    def get(self, key: str) -> str:
        """Waits for what a process of this machine puts under a key.

        Raises:
            PeerMissingError: nobody has within the deadline.
        """
        if self.store is None or key in self._own:
            if key not in self._own:
                raise PeerMissingError(f"nobody can put {key!r}: this process is alone")
            return self._own[key]
        try:
            self.store.wait([self._local(key)], timedelta(seconds=self.timeout_s))
            return self.store.get(self._local(key)).decode()
        except dist.DistError as error:
            others = [rank for rank in range(self.local_size) if rank != self.local_rank]
            raise PeerMissingError(
                f"rank {self.rank} waited {self.timeout_s:g} s for {key!r}",
                [
                    ("waited for", f"local rank {', '.join(map(str, others))} of machine {self.node}"),
                    ("detail", str(error).splitlines()[0]),
                ],
            ) from error

    def close(self) -> None:
        """Gives up group and store; a second call does nothing. Messages under way on other ranks fail."""
        if self.group is not None:
            self.group.close()
        # frozen for everybody else: a closed world holds no sockets and no threads
        object.__setattr__(self, "group", None)
        object.__setattr__(self, "store", None)

    def _local(self, key: str) -> str:
        return f"node {self.node}/{key}"


def join(device: str | None = None, timeout_s: float = 300.0) -> World:
    """Joins the job that the environment speaks of, or makes a world of one.

    Arguments:
        device: ``"cpu"``, ``"cuda"`` or one of them with an index; by default a GPU of this machine if there is one.
        timeout_s: seconds to wait for the other ranks, now and in each later message.

    Raises:
        InputError: the environment says half of a place, or more ranks than GPUs.
        PeerMissingError: the other ranks did not come in time.
        RunError: the launcher is gone.
    """
    tie_to_launcher(os.environ)
    place = find(os.environ)
    chosen = _device(device, place)
    if place.size == 1:
        return World(0, 1, 0, 1, chosen, None, None, place.node, timeout_s)
    timeout = timedelta(seconds=timeout_s)
    store = None
    try:
        store = PrefixStore(f"squall/{_attempt()}/{next(_JOINED)}", _store(place, timeout))
        store.set(f"here/{place.rank}", "")
        group = _group(PrefixStore("group", store), place, chosen, timeout)
    except RuntimeError as error:
        raise _nobody_came(place, store, timeout_s, error) from error
    return World(
        place.rank,
        place.size,
        place.local_rank,
        place.local_size,
        chosen,
        group,
        PrefixStore("text", store),
        place.node,
        timeout_s,
    )


def meet(place: Place, timeout_s: float) -> Store:
    """The job's store for a few words that have nothing to do with a `World`: who says an error, after all has failed.

    Where rank 0 holds the store, the one of its world may be alive still: then rank 0 is one of its clients as well.

    Raises:
        RuntimeError: nobody holds the store, or it is gone again.
    """
    timeout = timedelta(seconds=timeout_s)
    host, port = place.master or (LOOPBACK, 0)
    host = LOOPBACK if place.one_machine and not place.agent_store else host
    words = f"words/{_attempt()}"
    if place.rank == 0 and not place.agent_store:
        try:
            return PrefixStore(words, _store(place, timeout))
        except (RunError, RuntimeError):  # its port is taken
            pass
    _wait_for_listener(host, port, timeout_s)
    return PrefixStore(words, TCPStore(host, port, None, False, timeout))


def _wait_for_listener(host: str, port: int, timeout_s: float) -> None:
    """Returns when something listens at an address; torch's own wait ends in pages of its log."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((host, port), timeout=max(end - time.monotonic(), _RETRY_S)).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise RuntimeError(f"nobody listens at {host}:{port}") from error
            time.sleep(_RETRY_S)


def _attempt() -> str:
    """torchrun starts failed ranks again beside the same store, which still holds what the others said."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def _nobody_came(place: Place, store: Store | None, timeout_s: float, error: Exception) -> PeerMissingError:
    host, port = place.master or ("", 0)
    who = "the store of rank 0"
    if store is not None:
        missing = [str(rank) for rank in range(place.size) if not store.check([f"here/{rank}"])]
        who = f"rank {', '.join(missing)}" if missing else "all ranks: they came, but their sockets did not meet"
    return PeerMissingError(
        f"rank {place.rank} of {place.size} found not all others within {timeout_s:g} s",
        [
            ("waited for", f"{who} (store at {host}:{port})"),
            ("detail", str(error).splitlines()[0]),
            ("to do", "see whether all ranks were started, and whether they reach that address"),
        ],
    )


def _device(name: str | None, place: Place) -> torch.device:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count()
    if place.local_size > count:
        raise InputError(
            f"{place.local_size} processes on this machine, but {count} GPU{'' if count == 1 else 's'}",
            [("rule", "one process a GPU"), ("to do", f"--processes {count}, or --device cpu")],
        )
    if device.index is None or place.local_size > 1:
        device = torch.device("cuda", place.local_rank)
    torch.cuda.set_device(device)
    return device


def _store(place: Place, timeout: timedelta) -> Store:
    host, port = place.master or (LOOPBACK, 0)
    if place.agent_store:
        return TCPStore(host, port, None, False, timeout)
    if place.one_machine:
        host = LOOPBACK
    if place.rank:
        return TCPStore(host, port, None, False, timeout)
    if not place.one_machine:
        return TCPStore(host, port, None, True, timeout, wait_for_workers=False)
    return open_store(listener(port), timeout)


def listener(port: int = 0) -> socket.socket:
    """A TCP socket that listens on loopback; port 0 takes a free one."""
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((LOOPBACK, port))
        server.listen(socket.SOMAXCONN)
    except OSError as error:
        server.close()
        raise RunError(f"cannot listen on {LOOPBACK}:{port}", [("found", error.strerror or str(error))]) from error
    return server


def open_store(server: socket.socket, timeout: timedelta) -> TCPStore:
    """A store that serves on a socket made by `listener`; the store owns the socket from here on."""
    port = server.getsockname()[1]
    fd = server.detach()
    return TCPStore(LOOPBACK, port, None, True, timeout, False, True, fd)


def _group(store: Store, place: Place, device: torch.device, timeout: timedelta) -> Group:
    if device.type == "cuda":
        nccl = cast(Any, dist).ProcessGroupNCCL
        options = nccl.Options()
        options._timeout = timeout
        group = nccl(store, place.rank, place.size, options)
        group.eager_connect_single_device(device)
        return Group(group)
    gloo = cast(Any, dist).ProcessGroupGloo
    options = gloo._Options()
    address = _address(place)
    options._devices = [gloo.create_device(hostname=address) if address else gloo.create_default_device()]
    options._timeout = timeout
    return Group(gloo(store, place.rank, place.size, options))


def _address(place: Place) -> str:
    """Where this rank's Gloo sockets listen: loopback, or the address with which this machine reaches the master."""
    if place.one_machine:
        return LOOPBACK
    if os.environ.get("GLOO_SOCKET_IFNAME"):
        return ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # connecting UDP sends nothing
        try:
            probe.connect(place.master or (LOOPBACK, 1))
        except OSError:
            return ""
        address: str = probe.getsockname()[0]
    return "" if is_loopback(address) else address
