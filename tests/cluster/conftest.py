"""A Ray cluster on hosts in network namespaces."""

import contextlib
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from squall.engine.leftovers import marked
from tests.cluster.hosts import Host, hosts, start_node

_MARK = "SQUALL_TEST_CLUSTER"

# a host that is cut off is noticed after about ten seconds: Ray's own settings take more than a minute
_QUICK = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}


class Cluster:
    """Hosts, the first so many of them nodes of one Ray cluster; the first of all is its head.

    Attributes:
        environment: of Ray's processes, and of those who may join.
        folder: that all hosts see; its path is short.
        address: of the cluster.
    """

    def __init__(self, found: list[Host], folder: Path, environment: Mapping[str, str]) -> None:
        self.hosts, self.folder, self.environment = found, folder, dict(environment)
        self.head = found[0]
        self.address = f"{self.head.address}:6379"

    def join(self, host: Host, cpus: int = 1) -> None:
        """Makes a host a node."""
        head = None if host is self.head else self.head
        start_node(host, self.folder / f"ray-{host.name}", self.environment, head, cpus)

    def leave(self, host: Host) -> None:
        """Ends everything on a host; Ray itself first, which then takes its leave."""
        for name, number in (("raylet", signal.SIGTERM), ("", signal.SIGKILL)):
            for pid in host.processes(name):
                with contextlib.suppress(OSError):
                    os.kill(pid, number)


@contextmanager
def _cluster(number: int, nodes: int, more: Callable[[list[Host], Path], Mapping[str, str]]) -> Iterator[Cluster]:
    mark = secrets.token_hex(16)
    folder = Path(tempfile.mkdtemp(prefix="q", dir="/tmp"))
    (folder / "home").mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), **_QUICK}
    environment |= {"HOME": str(folder / "home"), _MARK: mark}
    try:
        with hosts(number) as found:
            made = Cluster(found, folder, {**environment, **more(found, folder)})
            try:
                made.join(made.head)
                with ThreadPoolExecutor(nodes) as pool:
                    list(pool.map(made.join, found[1:nodes]))
                yield made
            finally:
                # a process that gives itself another title may write over its environment: by its host, too
                there = [pid for host in found for pid in host.processes("")]
                for pid in {*there, *marked(f"{_MARK}={mark}".encode())}:
                    with contextlib.suppress(OSError):
                        os.kill(pid, signal.SIGKILL)
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def cluster_of() -> Callable[..., AbstractContextManager[Cluster]]:
    """Gives hosts, the first few of them nodes of a cluster: (hosts, nodes, what else stands in the environment)."""
    return _cluster
