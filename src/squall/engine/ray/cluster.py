"""Ray for one run: a private session on this machine, or a connection to a cluster that somebody else has started::

    with local(cpus=5, gpus=0, folder=run) as cluster: ...    on loopback, with a token of its own, gone at the end
    with joined("10.0.0.1:6379") as cluster: ...              a driver's connection, nothing else
    cluster.require(cpus=5, gpus=0, what="3 replicas, 2 shards")

A session of our own leaves nothing: its folder is a temporary one, its token stands in no file, and a keeper clears up,
also when the driver cannot. Of a cluster that is joined nothing is taken for granted: whether it can be reached, asks
for a token, accepts ours and has a node here is found out by a probe before Ray is asked, which would wait for a
minute. Nobody but its users may be able to start programs on it: a cluster without a token is refused.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from squall.cluster.place import LOOPBACK
from squall.engine.leftovers import TITLES
from squall.engine.ray import surroundings
from squall.engine.ray.admission import admitted, refused
from squall.engine.ray.connection import connection, reason
from squall.engine.ray.keeper import MARK, Keeper, python_path
from squall.errors import InputError, RunError, SquallError
from squall.units import megabytes

_SHARED_MEMORY = Path("/dev/shm")
_OBJECT_STORE = 75 << 20
"""Bytes: the least that Ray accepts. How roles are made goes through it, for a replica with the user's data sets;
Ray keeps in its folder what does not fit. Tensors do not go through it, but where connections are encrypted."""

_LONGEST_FOLDER = 36
"""Characters: a socket's path has at most 107, and Ray puts up to 68 behind its folder's."""
_NAMED = len("/squall-ray-12345678/r")

_JOIN_S = 12.0
"""Seconds that Ray has to join a cluster that has admitted us; with that it is over within 30."""

_FREE_S = 20.0
_POLL_S = 0.2


@dataclass(frozen=True)
class Node:
    """A machine of a cluster.

    Attributes:
        id: by which Ray places actors on it.
        address: of its network.
        cpus, gpus: that it offers to roles.
    """

    id: str
    address: str
    cpus: float
    gpus: float


class Cluster:
    """A Ray that this process is the driver of.

    Attributes:
        address: host:port of its head.
        node_id: of the node that the driver is on.
        namespace: of this run's names.
        tls: its connections are encrypted: the environment says RAY_USE_TLS.
    """

    def __init__(self, ray: Any, namespace: str) -> None:
        self._ray = ray
        context = ray.get_runtime_context()
        self.address: str = context.gcs_address
        self.node_id: str = context.get_node_id()
        self.namespace = namespace
        self.tls = os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")

    def nodes(self) -> list[Node]:
        """Those that are alive, by address."""
        found = [node for node in self._ray.nodes() if node["Alive"]]
        nodes = [
            Node(
                node["NodeID"],
                node["NodeManagerAddress"],
                node["Resources"].get("CPU", 0.0),
                node["Resources"].get("GPU", 0.0),
            )
            for node in found
        ]
        return sorted(nodes, key=lambda node: (node.address, node.id))

    def require(self, cpus: float, gpus: float, what: str, within: float = _FREE_S) -> None:
        """Sees to it that there is room for roles.

        Arguments:
            cpus, gpus: of all roles together.
            what: the roles, in words.
            within: seconds that others have to free what they use.

        Raises:
            InputError: there is too little, or it is in use.
        """
        needed = {"CPU": cpus, "GPU": gpus}
        there, _ = self.room()
        if not _holds(there, needed):
            nodes = self.nodes()
            number = f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}"
            raise self._too_little(needed, what, f"{number} with {in_words(there)}")
        end = time.monotonic() + within
        while not _holds(free := self.room()[1], needed):
            if time.monotonic() > end:
                raise self._too_little(needed, what, f"{in_words(free)} free of {in_words(there)}: others use the rest")
            time.sleep(_POLL_S)

    def room(self) -> tuple[dict[str, float], dict[str, float]]:
        """What there is for roles in all, and what of it is free now."""
        nodes, free = self.nodes(), self._ray.available_resources()
        there = {"CPU": sum(node.cpus for node in nodes), "GPU": sum(node.gpus for node in nodes)}
        return there, {name: free.get(name, 0.0) for name in there}

    def _too_little(self, needed: Mapping[str, float], what: str, found: str) -> InputError:
        return InputError(
            f"the Ray cluster at {self.address} has too little room",
            [
                ("found", found),
                ("needed", f"{in_words(needed)} for {what}"),
                ("to do", "ask for fewer replicas or shards, or add nodes to the cluster"),
            ],
        )


def _holds(there: Mapping[str, float], needed: Mapping[str, float]) -> bool:
    return all(there.get(name, 0.0) >= least for name, least in needed.items())


def in_words(resources: Mapping[str, float]) -> str:
    """Processors and GPUs."""
    return ", ".join(f"{resources.get(name, 0.0):g} {name}s" for name in ("CPU", "GPU"))


@contextmanager
def local(*, cpus: float, gpus: float = 0.0, folder: Path) -> Iterator[Cluster]:
    """A session of Ray on this machine, for this run alone; nothing of it is left afterwards.

    Arguments:
        cpus, gpus: that it offers to roles, whatever the machine has.
        folder: the run's; Ray's own logs are put into its `logs/ray` if Ray cannot be started.

    Raises:
        InputError: too little shared memory, or no folder for sockets.
        MissingExtraError: Ray is not installed.
        RunError: it does not start, or would listen beyond loopback.
    """
    surroundings.library()
    _check_shared_memory()
    session, namespace = uuid.uuid4().hex, f"squall-{uuid.uuid4().hex[:8]}"
    ours = _temporary()
    with ExitStack() as stack:
        stack.enter_context(_removed(ours))
        stack.enter_context(Keeper(session, ours))
        try:
            ray = stack.enter_context(
                connection(
                    _for_local(session),
                    {
                        "address": "local",
                        "num_cpus": cpus,
                        "num_gpus": gpus,
                        "object_store_memory": _OBJECT_STORE,
                        "include_dashboard": False,
                        "namespace": namespace,
                        "_temp_dir": str(ours / "r"),  # Ray lets everybody into its folder, and so to its sockets
                    },
                )
            )
        except SquallError:
            raise
        except Exception as error:
            raise _no_start(error, ours, folder / "logs" / "ray") from error
        yield Cluster(ray, namespace)


@contextmanager
def _for_local(session: str) -> Iterator[None]:
    """What is true while a session of our own starts."""
    given = {
        **surroundings.QUIET,
        **TITLES,  # Ray's agents would write theirs over the mark
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PYTHONPATH": python_path(os.environ),
        MARK: session,
    }
    with surroundings.environment(given, without=surroundings.NOT_OURS), surroundings.loopback():
        yield


def _check_shared_memory() -> None:
    """Where there is less, Ray takes a folder on disk, and says so on the terminal only."""
    state = os.statvfs(_SHARED_MEMORY)
    free = state.f_bavail * state.f_frsize
    if free <= _OBJECT_STORE:
        raise InputError(
            f"too little shared memory in {_SHARED_MEMORY}",
            [
                ("found", f"{megabytes(free)} free"),
                ("rule", f"Ray needs {megabytes(_OBJECT_STORE)} there for itself"),
                ("to do", "remove what others left there; in a container give it more: docker run --shm-size=1g"),
            ],
        )


def _temporary() -> Path:
    """A folder that only this user can enter, whose path is short enough for the sockets below it."""
    for parent in (tempfile.gettempdir(), "/tmp"):
        if len(parent) + _NAMED <= _LONGEST_FOLDER and os.access(parent, os.W_OK):
            return Path(tempfile.mkdtemp(prefix="squall-ray-", dir=parent))
    raise InputError(
        "there is no folder for Ray's sockets",
        [
            ("found", f"temporary files go to {tempfile.gettempdir()}, and /tmp cannot be written"),
            ("rule", f"their path must be short: the folder's has at most {_LONGEST_FOLDER - _NAMED} characters"),
            ("to do", "set TMPDIR to a shorter path"),
        ],
    )


@contextmanager
def _removed(folder: Path) -> Iterator[None]:
    """For the case that there is no keeper to do it."""
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _no_start(error: Exception, ours: Path, kept: Path) -> RunError:
    """Ray's own logs say more than its exception."""
    for logs in ours.glob("r/session_2*/logs"):
        with suppress(OSError, shutil.Error):
            shutil.copytree(logs, kept, dirs_exist_ok=True)
    rows = [("found", reason(error))]
    if kept.is_dir():
        rows.append(("logs", str(kept)))
    return RunError("Ray could not be started on this machine", rows)


@contextmanager
def joined(address: str, *, trusted: bool = False) -> Iterator[Cluster]:
    """A driver's connection to a cluster that runs; nothing is started there but what the run asks for.

    Ray finds the token: in RAY_AUTH_TOKEN, in the file that RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token.

    Arguments:
        address: host:port of its head.
        trusted: also where everybody who reaches it may start programs.

    Raises:
        InputError: no such cluster, no node of it here, no token or a wrong one, no authentication; within 30 s.
        MissingExtraError: Ray is not installed.
    """
    surroundings.library()
    host, mode = admitted(address, trusted)
    namespace = f"squall-{uuid.uuid4().hex[:8]}"
    with ExitStack() as stack:
        try:
            ray = stack.enter_context(
                connection(_for_joined(mode, host), {"address": address, "namespace": namespace}, within=_JOIN_S)
            )
        except SquallError:
            raise
        except TimeoutError as error:
            raise refused(address, f"Ray found no way in within {_JOIN_S:.0f} s") from error
        except Exception as error:  # other versions of Python or Ray, for example
            raise refused(address, reason(error)) from error
        yield Cluster(ray, namespace)


@contextmanager
def _for_joined(mode: str, host: str) -> Iterator[None]:
    """What is true while this process joins."""
    with ExitStack() as stack:
        stack.enter_context(surroundings.environment({**surroundings.QUIET, "RAY_AUTH_MODE": mode}))
        if host in ("localhost", LOOPBACK, "::1"):  # else Ray takes another address of this machine instead
            stack.enter_context(surroundings.loopback())
        yield
