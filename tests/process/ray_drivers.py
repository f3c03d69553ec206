"""Drivers of Ray in processes of their own, which a test may signal and kill, and what the machine shows of them."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFACE = """
import atexit, json, os, signal, sys, time
from pathlib import Path
from squall.engine.ray.cluster import joined, local
from squall.errors import SquallError

def say(**facts):
    print(json.dumps(facts), flush=True)

def role(ray):
    @ray.remote(num_cpus=1)
    class Role:
        def where(self):
            import squall
            return os.getpid(), squall.__file__
        def say(self):
            print("a role says this")
            return os.getpid()
    return Role.remote()
"""


class Driver:
    """A script after `PREFACE`, running.

    Attributes:
        process: in a session and process group of its own, as a terminal starts it.
        home: its home directory.
    """

    def __init__(self, script: str, home: Path, *arguments: str, **environment: str) -> None:
        self.home = home
        home.mkdir(exist_ok=True)
        self.errors = home / "stderr"
        self._said = b""
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PREFACE + script, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
                cwd=home,
                env={**env, "HOME": str(home), **environment},
                start_new_session=True,
            )

    def heard(self, timeout_s: float = 60.0) -> dict[str, object]:
        """The next facts that it says."""
        end = time.monotonic() + timeout_s
        while b"\n" not in self._said:
            assert self.process.stdout is not None
            patience = max(end - time.monotonic(), 0.0)
            assert select.select([self.process.stdout], [], [], patience)[0], self.errors.read_text()
            more = os.read(self.process.stdout.fileno(), 1 << 16)
            assert more, self.errors.read_text()
            self._said += more
        line, _, self._said = self._said.partition(b"\n")
        found: dict[str, object] = json.loads(line)
        return found

    def tell(self) -> None:
        """Lets it go on past its next `sys.stdin.readline()`."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")

    def ended(self, timeout_s: float = 30.0) -> tuple[int, str, str]:
        """Its exit status, and what it wrote since."""
        assert self.process.stdout is not None
        status = self.process.wait(timeout_s)
        return status, (self._said + self.process.stdout.read()).decode(), self.errors.read_text()


@contextmanager
def driver(script: str, home: Path, *arguments: str, **environment: str) -> Iterator[Driver]:
    """A driver that runs; ended at the end, if it has not."""
    started = Driver(script, home, *arguments, **environment)
    with started.process:
        try:
            yield started
        finally:
            started.process.kill()


def until(true: Callable[[], object], timeout_s: float) -> float:
    """Seconds until something is true; fails after so many."""
    start = time.monotonic()
    while not true():
        assert time.monotonic() - start < timeout_s, f"not within {timeout_s} s"
        time.sleep(0.02)  # between two looks, until the deadline
    return time.monotonic() - start


def command(pid: int) -> str:
    """A process's command line; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


Process = tuple[int, int]
"""Its number, and when it was started: numbers are used again."""


def below(pid: int) -> set[Process]:
    """A process and all that come from it, whatever their environment shows."""
    parents = {
        other: stat
        for entry in os.scandir("/proc")
        if entry.name.isdigit() and (stat := _stat(other := int(entry.name)))
    }
    found, new = set(), {pid}
    while new:
        found |= new
        new = {child for child, (parent, _) in parents.items() if parent in new} - found
    return {(each, parents[each][1]) for each in found if each in parents}


def alive(processes: set[Process]) -> list[str]:
    """Those that have not ended."""
    return [command(pid) for pid, started in processes if (stat := _stat(pid)) and stat[1] == started]


def _stat(pid: int) -> tuple[int, int] | None:
    """A process's parent, and when it was started; None: it has ended."""
    with suppress(OSError):
        state, parent, *others = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        return None if state in "ZX" else (int(parent), int(others[17]))
    return None


def variable(pid: int, name: str) -> str:
    """A variable of the environment that a process was started with."""
    with suppress(OSError):  # it has just ended
        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            key, _, value = entry.partition(b"=")
            if key.decode() == name:
                return value.decode()
    return ""


def listening(pids: list[int]) -> list[tuple[int, str]]:
    """The listening sockets of processes: whose, and the address, as the kernel's tables have them (hexadecimal)."""
    owners = {}
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                link = os.readlink(entry)
            except OSError:
                continue
            if link.startswith("socket:["):
                owners[link[8:-1]] = pid
    found = []
    for table, states in (("tcp", ("0A",)), ("tcp6", ("0A",)), ("udp", ("07",)), ("udp6", ("07",))):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if inode in owners and state in states:
                found.append((owners[inode], local.rpartition(":")[0]))
    return found


LOOPBACKS = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
"""127.0.0.1, the same in an IPv6 socket, and ::1, as the kernel's tables on a little-endian machine have them."""
