"""Two hosts on one machine: network namespaces with a cable between them, and a Ray node in each."""

from __future__ import annotations

import ctypes
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import harness

ADDRESSES = ("10.87.4.1", "10.87.4.2")
NEW_NETWORK = 0x40000000  # CLONE_NEWNET, sched.h
PORT = 6379
STORE = 1 << 30
STARTS_S = 60.0


@contextmanager
def two_hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a virtual cable; this process moves into the first."""

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    number = os.getpid()
    spaces, links = (f"sqa{number}", f"sqb{number}"), (f"va{number}", f"vb{number}")
    made = []
    try:
        for space in spaces:
            ip("netns", "add", space)
            made.append(space)
        ends = ["netns", spaces[0], "type", "veth", "peer", "name", links[1], "netns", spaces[1]]
        ip("link", "add", links[0], *ends)
        for space, link, address in zip(spaces, links, ADDRESSES, strict=True):
            ip("-n", space, "address", "add", f"{address}/24", "dev", link)
            ip("-n", space, "link", "set", "lo", "up")
            ip("-n", space, "link", "set", link, "up")
        enter(spaces[0])
        yield spaces
    finally:
        for space in made:
            ip("netns", "delete", space)


def enter(space: str) -> None:
    """Moves this process into a network namespace."""
    with Path(f"/run/netns/{space}").open("rb") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), NEW_NETWORK):
            raise OSError(ctypes.get_errno(), "setns")


@contextmanager
def ray_cluster(spaces: Sequence[str]) -> Iterator[str]:
    """Ray's address, of a cluster of both hosts; its token stands in this process's environment meanwhile.

    The first host has one processor to give, the second two for the callee of each of three contenders.
    """
    from squall.engine.ray.probe import look

    known = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(harness.HERE),
    }
    address = f"{ADDRESSES[0]}:{PORT}"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="ray-", dir="/tmp")))
        stack.callback(os.environ.update, {name: os.environ.get(name, "") for name in known})
        os.environ.update(known)
        for number, (space, cpus) in enumerate(zip(spaces, (1, 6), strict=True)):
            first = ["--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={folder}"]
            command = [
                *("ip", "netns", "exec", space, sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
                *(first if not number else [f"--address={address}"]),
                *(f"--node-ip-address={ADDRESSES[number]}", f"--num-cpus={cpus}", f"--object-store-memory={STORE}"),
            ]
            log = folder / f"node-{number}.log"
            stack.enter_context(harness.started(command, log, known))
            end = time.monotonic() + STARTS_S
            while len(look(address, "token", 10.0).nodes) <= number:
                if time.monotonic() > end:
                    raise harness.FailedError(f"no Ray node on {ADDRESSES[number]}\n{harness.tail(log)}")
                time.sleep(0.5)
        yield address
