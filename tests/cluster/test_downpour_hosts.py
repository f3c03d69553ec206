"""Downpour on several hosts: network namespaces, each a node of a Ray cluster that asks for a token. Needs root.

The hosts share the machine's files, as machines of a cluster share a folder; where a test hides some, one does not.
"""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

import pytest

import squall
from squall.run.folder import LOGS, RECORDS, RESULT
from squall.version import own_version
from tests.cluster.conftest import Cluster
from tests.cluster.hosts import SQUALL, Host
from tests.process.ray_drivers import until

STARTS_S = 120.0
EXPECTED_S = 30.0

# slow until somebody says that the rest may be fast: hosts come and go in the middle, however fast the machine is
TASK = """
import time
from pathlib import Path
import torch
from torch import nn
import squall

generator = torch.Generator().manual_seed(1)
inputs = torch.randn(800, 64, generator=generator)
labels = (inputs[:, 0] + inputs[:, 1] > 0).long()
hurry = Path(__file__).with_name("hurry")

def network():
    return nn.Sequential(nn.Linear(64, 1024), nn.Tanh(), nn.Linear(1024, 2))

def loss(outputs, targets):
    if torch.is_grad_enabled() and not hurry.exists():
        time.sleep(0.15)  # a gradient that takes a while: a host can be cut off before the run is over
    return nn.functional.cross_entropy(outputs, targets, reduction="none")

task = squall.Task(model=network, loss=loss, train=torch.utils.data.TensorDataset(inputs, labels),
                   test=torch.utils.data.TensorDataset(inputs[:100], labels[:100]))
recipe = squall.Recipe(epochs=20, worker_batch_size=8, lr={"base": 0.05, "schedule": "constant"}, strategy="downpour",
                       optimizer={"name": "sgd"}, downpour={"replicas": 3, "shards": 3, "lease_timeout": "4s"},
                       checkpoint={"every": "10step"})
"""


@pytest.fixture(scope="module")
def cluster(cluster_of: Callable[..., Any]) -> Iterator[Cluster]:
    """Three nodes with a processor each; three hosts more, which may join."""
    with cluster_of(6, 3, lambda *_: {}) as made:
        (made.folder / "task.py").write_text(TASK)
        yield made


class Training:
    """`squall train` on a cluster's head, as a person starts it.

    Attributes:
        folder: of the run.
        began: seconds of the clock.
    """

    def __init__(self, cluster: Cluster, name: str, *words: str, **environment: str) -> None:
        self.cluster, self.folder = cluster, cluster.folder / name
        self.errors = cluster.folder / f"{name}.err"
        target = words or ("task.py",)
        address = [] if "--cluster" in words else ["--cluster", cluster.address]
        known = {name: value for name, value in {**cluster.environment, **environment}.items() if value}
        self.began = time.monotonic()
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                cluster.head.words(SQUALL, "train", *target, *address, "--out", self.folder),
                cwd=cluster.folder, env=known, stdout=errors, stderr=errors,
            )  # fmt: skip

    def records(self, kind: str) -> list[dict[str, Any]]:
        """Those of a kind that the run has written so far."""
        self.check()
        path = self.folder / RECORDS
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        return [row for row in rows if row["kind"] == kind]

    def check(self) -> None:
        assert self.process.poll() in (None, 0), self.errors.read_text()

    def pushed(self, after: float = 0.0) -> set[str]:
        """Replicas that have pushed since a second of the run."""
        return {row["replica"] for row in self.records("push") if row["seconds"] > after}

    def changes(self, role: str) -> list[str]:
        """What became of a role."""
        return [row["change"] for row in self.records("role") if row["role"] == role]

    def hosts_of(self, role: str) -> list[str]:
        """Addresses of the hosts on which its incarnations were made."""
        path = self.folder / LOGS / f"{role}.log"
        rows = [row for row in path.read_text().splitlines() if row.startswith(f"{role}, incarnation ")]
        return [row.rpartition("(")[2].rstrip(")") for row in rows]

    def failed(self) -> tuple[int, str, float]:
        """Exit status, what it wrote, and how long it took."""
        status = self.process.wait(STARTS_S)
        return status, self.errors.read_text(), time.monotonic() - self.began


@contextmanager
def training(cluster: Cluster, name: str, *words: str, **environment: str) -> Iterator[Training]:
    """A training that is ended at the end, if it has not."""
    started = Training(cluster, name, *words, **environment)
    with started.process:
        try:
            yield started
        finally:
            started.process.kill()


@pytest.mark.timeout(300)
def test_a_run_spans_hosts_of_which_one_is_cut_off_and_another_joins(cluster: Cluster) -> None:
    head, second, third, fourth = cluster.hosts[:4]
    with training(cluster, "spans") as run:
        until(lambda: len(run.pushed()) == 3 and len(run.records("push")) > 30, STARTS_S)
        three = {host.address for host in (head, second, third)}
        assert {run.hosts_of(f"shard-{index}")[0] for index in range(3)} == three
        assert {run.hosts_of(f"replica-{index}")[0] for index in range(3)} == three
        assert run.hosts_of("coordinator") == [head.address]
        for host in (head, second, third):  # its replica with the shards of the two others, and these with its own
            assert set(moved := host.pairs()) == three - {host.address}
            assert min(moved.values()) > 100_000
        lost = next(f"replica-{index}" for index in range(3) if run.hosts_of(f"replica-{index}") == [third.address])
        shard = next(f"shard-{index}" for index in range(3) if run.hosts_of(f"shard-{index}") == [third.address])

        third.cut()
        until(lambda: run.changes(shard) == ["restarted"], STARTS_S)  # elsewhere, from its snapshot
        assert run.hosts_of(shard)[-1] in {head.address, second.address}
        assert run.changes(lost)[-1] == "silent"
        back = next(row["seconds"] for row in run.records("role") if row["role"] == shard)
        until(lambda: len(run.pushed(back)) == 2, STARTS_S)  # the two others go on
        assert lost not in run.pushed(back)

        cluster.join(fourth, cpus=2)
        words = fourth.words(SQUALL, "runs", "resize", run.folder, "--replicas", "4", "--no-wait")
        asked = subprocess.run(words, env=cluster.environment, capture_output=True, text=True)
        assert asked.returncode == 0, asked.stderr
        until(lambda: run.pushed(back) == {f"replica-{index}" for index in range(4)}, STARTS_S)
        assert run.hosts_of("replica-3") == [fourth.address]
        assert run.hosts_of(lost) == [third.address, fourth.address]

        (cluster.folder / "hurry").touch()
        assert run.process.wait(STARTS_S) == 0, run.errors.read_text()
        result = json.loads((run.folder / RESULT).read_text())
        assert result["outcome"] == "finished"
        assert result["minibatches"]["settled"] == 2000


# -- clusters that cannot do it ---------------------------------------------------------------------------------------


def refused(cluster: Cluster, name: str, *words: str, **environment: str) -> tuple[str, float]:
    """What a training says that ends with an error of the user's, and after how many seconds."""
    with training(cluster, name, *words, **environment) as run:
        status, said, seconds = run.failed()
    assert status == 2, said
    assert "Traceback" not in said
    return said, seconds


@pytest.mark.parametrize(
    ("words", "environment", "found"),
    [
        (("--cluster", "127.0.0.1:1"), {}, "Connection refused"),
        ((), {"RAY_AUTH_TOKEN": ""}, "it asks for a token, and there is none here"),
        ((), {"RAY_AUTH_TOKEN": "0" * 64}, "it asks for a token, and has another than this process"),
        (("downpour.replicas=50",), {}, "50 CPUs, 0 GPUs for 3 shards, 50 replicas"),
    ],
)
def test_what_cannot_be_joined_is_said_in_time(
    cluster: Cluster, words: tuple[str, ...], environment: dict[str, str], found: str
) -> None:
    said, seconds = refused(cluster, "refused", "task.py", *words, **environment)
    assert found in said
    assert seconds < EXPECTED_S


@contextmanager
def joined(cluster: Cluster, host: Host, others: dict[Path, Path | None]) -> Iterator[None]:
    """A host that is a node for a while, and sees other folders than the rest."""
    host.others = others
    cluster.join(host)
    try:
        yield
    finally:
        cluster.leave(host)


def test_a_host_that_does_not_see_the_run_is_named_at_the_start(cluster: Cluster) -> None:
    """A folder of the same name, and not the same: a shard would write where nobody finds it."""
    (shared := cluster.folder / "runs").mkdir()
    with joined(cluster, cluster.hosts[4], {shared: None}):
        said, _ = refused(cluster, "runs/unseen", "task.py", "downpour.shards=5", "downpour.replicas=2")
    assert "a shard does not see the run's folder" in said
    assert f"{shared / 'unseen'}" in said
    assert "--out with a folder of a shared file system" in said


def test_a_host_with_another_version_is_named(cluster: Cluster) -> None:
    facts = Path(distribution("squall-train").locate_file(f"squall_train-{own_version()}.dist-info"))
    shutil.copytree(facts, other := cluster.folder / "facts")
    text = (facts / "METADATA").read_text()
    (other / "METADATA").write_text(text.replace(f"\nVersion: {own_version()}\n", "\nVersion: 0.0.7\n"))
    with joined(cluster, cluster.hosts[5], {facts: other}):
        said, _ = refused(cluster, "version", "task.py", "downpour.shards=5", "downpour.replicas=2")
    assert "is on a machine with other versions than the driver's" in said
    assert f"squall 0.0.7, torch {version('torch').partition('+')[0]} on " in said
    assert cluster.hosts[5].address in said
    assert f"squall-train[async]=={own_version()}" in said


def test_a_host_without_squall_is_an_error_that_says_so(cluster: Cluster) -> None:
    with joined(cluster, cluster.hosts[4], {Path(squall.__file__).parent: None}):
        said, _ = refused(cluster, "lacking", "task.py", "downpour.shards=5", "downpour.replicas=2")
    assert "cannot run on" in said
    assert "No module named 'squall" in said
    assert f"squall-train[async]=={own_version()}" in said


# -- encrypted --------------------------------------------------------------------------------------------------------


def certificates(found: list[Host], folder: Path) -> dict[str, str]:
    """What Ray reads where its connections are to be encrypted."""
    key, certificate = folder / "tls.key", folder / "tls.crt"
    names = ",".join(f"IP:{address}" for address in ("127.0.0.1", *(host.address for host in found)))
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=ray", "-days", "2",
         "-addext", f"subjectAltName={names}", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_KEY": str(key),
        "RAY_TLS_SERVER_CERT": str(certificate),
        "RAY_TLS_CA_CERT": str(certificate),
    }


@pytest.mark.timeout(300)
def test_where_connections_are_encrypted_tensors_take_them_too(cluster_of: Callable[..., Any]) -> None:
    with cluster_of(2, 2, certificates) as cluster:
        (cluster.folder / "task.py").write_text(TASK)
        said, seconds = refused(cluster, "plain", "task.py", RAY_USE_TLS="")
        assert "RAY_USE_TLS=1 and its certificates here too" in said
        assert seconds < EXPECTED_S
        with training(cluster, "tls", "task.py", "downpour.replicas=2", "downpour.shards=2") as run:
            until(lambda: len(run.pushed()) == 2 and len(run.records("push")) > 30, STARTS_S)
            assert {run.hosts_of(f"shard-{index}")[0] for index in range(2)} == {h.address for h in cluster.hosts}
            assert [host.pairs() for host in cluster.hosts] == [{}, {}]
            (cluster.folder / "hurry").touch()
            assert run.process.wait(STARTS_S) == 0, run.errors.read_text()
        assert json.loads((run.folder / RESULT).read_text())["minibatches"]["settled"] == 2000
