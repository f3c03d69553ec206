"""Whether a cluster can be joined, and how: found out before Ray is asked, which would wait for a minute.

    host:port    is somebody there?    without a token, are we let in?    with ours?    is this machine a node of it?

Nobody but its users may be able to start programs on a cluster: one that lets a stranger in is refused, unless the user
says that nobody else can reach it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from squall.engine.ray.probe import look
from squall.errors import InputError

# one look at the port and two by a probe
_REACH_S = 4.0
_PROBE_S = 7.0

_ENCRYPTED = "if its connections are encrypted: RAY_USE_TLS=1 and its certificates here too, as on its machines"


def admitted(address: str, trusted: bool) -> tuple[str, str]:
    """Its host, and the mode of authentication in which it lets us in: "token" or "disabled".

    Arguments:
        address: host:port of its head.
        trusted: also where everybody who reaches it may start programs.

    Raises:
        InputError: no such cluster, no node of it here, no token or a wrong one, no authentication; within 20 s.
    """
    host, port = _parsed(address)
    _reach(address, host, port)
    return host, _authentication(address, trusted)


def refused(address: str, found: str, to_do: str = "") -> InputError:
    """A cluster that cannot be joined: what was found, and what to do about it."""
    return InputError(
        f"the Ray cluster at {address} cannot be joined",
        [("found", found), ("to do", to_do or f"look whether it runs: ray status --address {address}")],
    )


def _parsed(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(
            f"{address!r} is no address of a Ray cluster",
            [
                ("rule", "host:port of its head, as `ray start --head` prints it; on a machine that is a node of it"),
                ("to do", "--cluster 10.0.0.1:6379"),
            ],
        )
    return host.strip("[]"), int(port)


def _reach(address: str, host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), timeout=_REACH_S).close()
    except OSError as error:
        found = f"no answer within {_REACH_S:.0f} s" if isinstance(error, TimeoutError) else error.strerror
        raise refused(address, found or str(error)) from error


def _authentication(address: str, trusted: bool) -> str:
    """The mode in which a cluster lets us in, and only if it asks for a token or is trusted."""
    stranger = look(address, "disabled", _PROBE_S)
    if stranger.failed:
        found = f"something listens there that does not answer as Ray does: {stranger.failed}"
        raise refused(address, found, "" if os.environ.get("RAY_USE_TLS") else _ENCRYPTED)
    nodes = stranger.nodes
    if not stranger.refused:
        if not trusted:
            raise InputError(
                f"the Ray cluster at {address} lets everybody in",
                [
                    ("found", "it answers without a token: whoever reaches it can run programs on it"),
                    ("to do", "start it with a token: RAY_AUTH_MODE=token, and the same token on all nodes and here"),
                    ("or", "--trust-cluster, if nobody else can reach it"),
                ],
            )
    else:
        where = "RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH (a file that holds it), or ~/.ray/auth_token"
        if not _has_token(os.environ):  # Ray's client ends the process where it finds none
            raise refused(address, "it asks for a token, and there is none here", f"give it in {where}")
        known = look(address, "token", _PROBE_S)
        if known.refused:
            raise refused(address, "it asks for a token, and has another than this process", f"correct it in {where}")
        if known.failed:
            raise refused(address, known.failed)
        nodes = known.nodes
    if not any(_is_here(node) for node in nodes):
        raise refused(
            address,
            f"this machine is none of its nodes: {', '.join(nodes)}",
            "start the run on one of them, or add this machine: ray start --address " + address,
        )
    return "token" if stranger.refused else "disabled"


def _has_token(environ: Mapping[str, str]) -> bool:
    """Whether there is one where Ray looks for it."""
    if environ.get("RAY_AUTH_TOKEN"):
        return True
    named = environ.get("RAY_AUTH_TOKEN_PATH")
    with suppress(OSError, RuntimeError):  # not to be read; no home
        return bool((Path(named) if named else Path.home() / ".ray" / "auth_token").read_text().strip())
    return False


def _is_here(address: str) -> bool:
    """Only an address of this machine can be bound to."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as trial:
        try:
            trial.bind((address, 0))
        except OSError:
            return False
    return True
