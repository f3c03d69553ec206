"""What Ray reads when a driver starts or joins a session, set for that moment and put back.

Ray takes much from the environment, and keeps it: its C++ half reads the way of authentication and the token once and
holds them for all later connections; the processes it starts inherit the environment as it is at that time. So the
variables stand there only while Ray starts: what the driver starts later, a loader or a tracker, gets no token.

Loopback. Ray asks its machine for an address that others can reach, and listens on all interfaces, whatever address
it is told; only where clusters are switched off (a variable meant for desktops that show a firewall's question) does it
settle on 127.0.0.1, and then its C++ half listens there alone. The variable is read when Ray is imported, perhaps long
ago, so the value it was read into is set too. Whether it worked is asked through a public name before anything starts.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from squall.cluster.place import LOOPBACK
from squall.errors import MissingExtraError, RunError

NO_CLUSTERS = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Makes Ray stay on loopback."""

QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
"""No usage statistics; no copy of the working folder where Python was started by uv."""

NOT_OURS = ("RAY_ADDRESS", "RAY_REDIS_ADDRESS", "RAY_NAMESPACE", "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_TMPDIR")
"""Of another cluster, to which a session of our own has no relation."""

_SETS = ("PYTHONBREAKPOINT", "RAY_CLIENT_MODE")
"""Ray sets them in the driver, as it is imported or starts: the first sends `breakpoint()` to a debugger of its own."""


def library() -> ModuleType:
    """Ray.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        with environment({}):
            return importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtraError("asynchronous training in several processes", "ray", "async") from error


@contextmanager
def environment(given: Mapping[str, str], without: tuple[str, ...] = ()) -> Iterator[None]:
    """Variables that are set, and others that are not, within this context."""
    before = {name: os.environ.get(name) for name in (*given, *without, *_SETS)}
    for name in without:
        os.environ.pop(name, None)
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def loopback() -> Iterator[None]:
    """Within this context Ray takes 127.0.0.1 for its machine's address, and listens nowhere else.

    Raises:
        RunError: this version of Ray does not; nothing has been started.
    """
    ray = library()
    constants: Any = importlib.import_module("ray._private.ray_constants")
    name = "ENABLE_RAY_CLUSTER"
    before = getattr(constants, name, None)
    with environment(NO_CLUSTERS):
        if before is not None:
            setattr(constants, name, False)
        try:
            if (found := ray.util.get_node_ip_address()) not in (LOOPBACK, "::1"):
                raise RunError(
                    "Ray would listen where others can reach it",
                    [
                        ("found", f"Ray {ray.__version__} takes {found} for this machine's address"),
                        ("rule", f"a session on this machine listens on {LOOPBACK} only"),
                        ("to do", "install a version of Ray that is known to work: pip install 'ray==2.60.0'"),
                    ],
                )
            yield
        finally:
            if before is not None:
                setattr(constants, name, before)


def reread() -> None:
    """Makes Ray's C++ half read its settings and the token again: an earlier session of this process had others.

    Raises:
        RunError: this version of Ray has no such door.
    """
    library()
    try:
        raylet: Any = importlib.import_module("ray._raylet")
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()
    except (ImportError, AttributeError) as error:
        raise RunError(
            "this version of Ray cannot be told which token to use",
            [("found", str(error)), ("to do", "install one that is known to work: pip install 'ray==2.60.0'")],
        ) from error


@contextmanager
def silence() -> Iterator[None]:
    """Within this context Ray says nothing on the terminal: neither its logger, nor the thread that prints what happens
    to its processes, and asks a switch that debuggers use. A death comes to those who wait for the dead, with its
    cause."""
    logger = logging.getLogger("ray")
    worker: Any = importlib.import_module("ray._private.worker")
    level, prints = logger.level, getattr(worker, "_worker_logs_enabled", True)
    logger.setLevel(logging.CRITICAL + 1)
    worker._worker_logs_enabled = False
    try:
        yield
    finally:
        worker._worker_logs_enabled = prints
        logger.setLevel(level)
