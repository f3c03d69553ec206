"""Hosts for tests: network namespaces, each with an address of its own, plugged into one switch; cables can be pulled.

The switch is a bridge in a namespace too: nothing of the machine's own network changes. Needs root.

    host 1  10.87.4.1 ---\\
    host 2  10.87.4.2 ----- switch
    host 3  10.87.4.3 ---/

Ray's nodes on them are real ones, as `ray start` makes them; they share the machine's files, unless one hides some.
"""

import ctypes
import itertools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PORT = 6379
RAY = Path(sys.executable).with_name("ray")
SQUALL = Path(sys.executable).with_name("squall")


_NEW_NETWORK = 0x40000000  # CLONE_NEWNET, sched.h
_numbers = itertools.count()


def ip(*words: str) -> str:
    """Runs `ip`; what it says."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert done.returncode == 0, f"needs root and network namespaces: ip {' '.join(words)}: {done.stderr}"
    return done.stdout


@dataclass
class Host:
    """A network namespace.

    Attributes:
        switch, plug: the other end of its cable: namespace and interface.
        others: folders of the machine in whose place it sees another one; None: an empty one.
    """

    name: str
    address: str
    switch: str
    plug: str
    others: dict[Path, Path | None] = field(default_factory=dict)

    def cut(self) -> None:
        """Pulls its cable: nobody is told."""
        ip("-n", self.switch, "link", "set", self.plug, "down")

    def mend(self) -> None:
        """Plugs it in again."""
        ip("-n", self.switch, "link", "set", self.plug, "up")

    def enter(self) -> None:
        """From here on the calling thread is on this host."""
        with Path(f"/run/netns/{self.name}").open("rb") as space:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(space.fileno(), _NEW_NETWORK):
                raise OSError(ctypes.get_errno(), "setns")

    def words(self, *command: str | Path) -> list[str]:
        """A command that runs another on this host, and becomes it."""
        mounts = [
            ["mount", "--bind", str(source), str(target)] if source else ["mount", "-t", "tmpfs", "none", str(target)]
            for target, source in self.others.items()
        ]
        text = " && ".join([*map(shlex.join, mounts), f"exec {shlex.join(map(str, command))}"])
        return ["ip", "netns", "exec", self.name, "sh", "-c", text]

    def processes(self, name: str = "") -> list[int]:
        """Those that run on it; of that name only."""
        found = [int(pid) for pid in ip("netns", "pids", self.name).split()]
        return [pid for pid in found if name in _name(pid)]

    def pairs(self) -> dict[str, int]:
        """Bytes that have come over pairs of Gloo's, by the other's address: Ray's own sockets are of IPv6."""
        words = self.words("ss", "-4", "-Htnpi", "state", "established")
        table = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        found: dict[str, int] = {}
        for row in re.sub(r"\n[ \t]+", " ", table).splitlines():
            there, received = row.split()[3].rpartition(":")[0], re.search(r"bytes_received:(\d+)", row)
            if "ray::Host" in row and there != self.address and not there.startswith("["):
                found[there] = found.get(there, 0) + (int(received[1]) if received else 0)
        return found


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


@contextmanager
def hosts(number: int) -> Iterator[list[Host]]:
    """So many hosts, on one switch."""
    mark = f"sq{os.getpid()}-{next(_numbers)}"
    switch, names = f"{mark}s", [f"{mark}h{index}" for index in range(1, number + 1)]
    made = []
    try:
        for name in (switch, *names):
            ip("netns", "add", name)
            made.append(name)
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        found = []
        for index, name in enumerate(names, 1):
            host = Host(name, f"10.87.4.{index}", switch, f"plug{index}")
            end = ["peer", "name", "eth0", "netns", name]
            ip("link", "add", host.plug, "netns", switch, "type", "veth", *end)
            ip("-n", switch, "link", "set", host.plug, "master", "bridge", "up")
            ip("-n", name, "address", "add", f"{host.address}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                ip("-n", name, "link", "set", link, "up")
            found.append(host)
        yield found
    finally:
        for name in made:
            ip("netns", "delete", name)


def start_node(
    host: Host, folder: Path, environment: Mapping[str, str], head: Host | None = None, cpus: int = 1
) -> None:
    """Makes a host a node of a Ray cluster: that of the head, or one of its own.

    Arguments:
        folder: for Ray's own files; its path is short.
        environment: of Ray's processes.
        head: None: this host is it.
    """
    to = (
        ["--head", f"--port={PORT}", "--include-dashboard=false"]
        if head is None
        else [f"--address={head.address}:{PORT}"]
    )
    words = host.words(
        RAY, "start", *to, f"--node-ip-address={host.address}", f"--num-cpus={cpus}", f"--temp-dir={folder}",
        f"--object-store-memory={75 << 20}", "--disable-usage-stats", "--include-log-monitor=false",
    )  # fmt: skip
    done = subprocess.run(words, env={**environment, "RAY_TMPDIR": str(folder)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
