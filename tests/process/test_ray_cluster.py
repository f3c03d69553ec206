"""Real sessions of Ray: who can reach them, what they say, and that nothing is left, however their driver ends."""

import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from squall.engine.leftovers import marked
from squall.engine.ray import admission
from squall.engine.ray import cluster as cluster_module
from squall.engine.ray.cluster import joined, local
from squall.engine.ray.keeper import MARK
from squall.engine.ray.probe import Seen
from squall.errors import InputError, MissingExtraError
from tests.process.ray_drivers import (
    LOOPBACKS,
    Driver,
    Process,
    alive,
    below,
    command,
    driver,
    listening,
    until,
    variable,
)

GONE_S = 10.0

# what a driver does: a session, a role in it, and then what the test wants
SESSION = """
with local(cpus=2, folder=Path("run")) as cluster:
    import ray
    one = role(ray)
    pid, where = ray.get(one.where.remote())
    say(pid=pid, squall=where, address=cluster.address, node=cluster.node_id, namespace=cluster.namespace,
        nodes=[[node.id, node.address, node.cpus, node.gpus] for node in cluster.nodes()])
    {then}
"""


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where drivers put temporary files; nothing may be left there. Its path is short, for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="q", dir="/tmp") as path:
        yield Path(path)
        until(lambda: not os.listdir(path), GONE_S)


@pytest.fixture
def session(mark: Callable[[], list[int]], temporary: Path, tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    """Starts a driver whose session is ready; afterwards no process and no file of it may be left."""
    home = tmp_path / "home"
    shared = set(os.listdir("/dev/shm"))
    drivers: list[Driver] = []

    def start(then: str) -> Driver:
        started = Driver(SESSION.format(then=then), home, TMPDIR=str(temporary))
        drivers.append(started)
        return started

    yield start
    for started in drivers:
        started.process.kill()
        started.process.wait()
        for pipe in (started.process.stdin, started.process.stdout):
            assert pipe is not None
            pipe.close()
    until(lambda: not mark(), GONE_S)
    until(lambda: not any(temporary.iterdir()), GONE_S)
    assert not [name for name in set(os.listdir("/dev/shm")) - shared if "plasma" in name or "ray" in name]
    assert not (home / ".ray").exists()
    assert not (home / "run").exists()


def of_session(mark: Callable[[], list[int]], driver: Driver) -> list[int]:
    """Ray's processes, without the driver and the keeper."""
    return [pid for pid in mark() if pid != driver.process.pid and variable(pid, MARK)]


def all_of(mark: Callable[[], list[int]], driver: Driver) -> set[Process]:
    """Every process of a driver, found as what it has started; all carry the mark, or they would outlive it."""
    until(lambda: sum("Agent" in command(pid) for pid, _ in below(driver.process.pid)) == 2, GONE_S)
    found = below(driver.process.pid)
    assert {pid for pid, _ in found} <= set(mark())
    return found


def test_every_socket_is_on_loopback(session, mark):
    running = session("sys.stdin.readline()")
    running.heard()
    found = listening([pid for pid, _ in all_of(mark, running)])
    owners = {command(pid).split(" --")[0].rpartition("/")[2] for pid, _ in found}
    assert owners >= {"gcs_server", "raylet", "ray::Role"}
    assert running.process.pid in {pid for pid, _ in found}
    assert {address for _, address in found} <= set(LOOPBACKS)


def test_a_socket_on_all_interfaces_would_be_seen():
    with socket.create_server(("0.0.0.0", 0)):
        assert (os.getpid(), "00000000") in listening([os.getpid()])


def test_facts_of_a_session(session):
    running = session("one.say.remote(); ray.get(one.say.remote()); sys.stdin.readline()")
    facts = running.heard()
    assert facts["nodes"] == [[facts["node"], "127.0.0.1", 2.0, 0.0]]
    assert str(facts["address"]).startswith("127.0.0.1:")
    assert facts["namespace"].startswith("squall-")
    assert facts["squall"] == sys.modules["squall"].__file__
    running.tell()
    assert running.ended() == (0, "", "")  # neither Ray nor the role wrote on the terminal


DEATH = """
    again = ray.remote(max_restarts=-1, num_cpus=1)(type("Again", (), {"pid": lambda self: os.getpid()})).remote()
    first = ray.get(again.pid.remote())
    os.kill(first, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    try:
        ray.get(one.where.remote())
    except ray.exceptions.ActorDiedError as error:
        say(died=str(error.actor_id is not None))
    while True:
        try:
            say(again=ray.get(again.pid.remote()) != first)
            break
        except ray.exceptions.ActorUnavailableError:
            pass
"""


def test_a_death_is_told_to_those_who_wait_and_not_on_the_terminal(session):
    running = session(DEATH.strip())
    running.heard()
    assert running.heard() == {"died": "True"}
    assert running.heard() == {"again": True}
    assert running.ended() == (0, "", "")


def test_the_token_is_nowhere_but_in_memory(session, mark, temporary):
    running = session("sys.stdin.readline()")
    running.heard()
    token = variable(of_session(mark, running)[0], "RAY_AUTH_TOKEN")
    assert len(token) == 64
    assert not any(token in command(pid) for pid in {*mark(), *(pid for pid, _ in all_of(mark, running))})
    folder = next(temporary.glob("squall-ray-*"))
    assert folder.stat().st_mode & 0o077 == 0
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    assert not any(token.encode() in file.read_bytes() for file in files)
    keepers = [pid for pid in mark() if "squall.engine.ray.keeper" in command(pid)]
    assert len(keepers) == 1
    assert not variable(keepers[0], "RAY_AUTH_TOKEN")


def test_a_stranger_is_not_let_in(session, mark, tmp_path):
    running = session("sys.stdin.readline()")
    address = running.heard()["address"]
    with driver(JOINS, tmp_path / "other", str(address), "1") as stranger:
        assert "asks for a token" in str(stranger.heard()["error"])


def test_an_exception_ends_it(session, mark):
    running = session("raise ValueError('of the caller')")
    running.heard()
    status, said, errors = running.ended()
    assert (status, said) == (1, "")
    assert "ValueError: of the caller" in errors
    assert errors.count("Traceback") == 1
    assert mark() == []


def test_ctrl_c_is_the_drivers(session, mark):
    # the terminal signals the whole group: the role must live until its driver says otherwise
    running = session(
        "\n    try:\n        say(); time.sleep(60)\n"
        "    except KeyboardInterrupt:\n        say(pid=ray.get(one.where.remote())[0])\n        raise SystemExit(130)"
    )
    role = running.heard()["pid"]
    running.heard()
    os.killpg(running.process.pid, signal.SIGINT)
    assert running.heard()["pid"] == role
    assert running.ended()[0] == 130
    assert mark() == []


def test_ctrl_c_twice(session, mark):
    running = session("say(); time.sleep(60)")
    running.heard()
    running.heard()
    running.process.send_signal(signal.SIGINT)
    until(lambda: len(of_session(mark, running)) < 4, GONE_S)  # it is stopping
    if running.process.poll() is None:
        running.process.send_signal(signal.SIGINT)
    assert running.ended()[0] != 0
    until(lambda: not mark(), GONE_S)


def test_sigterm_reaches_the_callers_handler(session, mark):
    running = session(
        "\n    signal.signal(signal.SIGTERM, lambda *_: say(noted=True))\n"
        "    say(); sys.stdin.readline(); say(pid=ray.get(one.where.remote())[0])"
    )
    role = running.heard()["pid"]
    running.heard()
    running.process.send_signal(signal.SIGTERM)
    assert running.heard() == {"noted": True}
    running.tell()
    assert running.heard()["pid"] == role
    assert running.ended()[0] == 0


HANDLERS = """
signal.signal(signal.SIGTERM, lambda *_: say(noted=True))
before = [signal.getsignal(number) for number in signal.valid_signals()], dict(os.environ)
say()
with local(cpus=1, folder=Path("run")) as cluster:
    say(same=before == ([signal.getsignal(number) for number in signal.valid_signals()], dict(os.environ)))
say(same=before == ([signal.getsignal(number) for number in signal.valid_signals()], dict(os.environ)))
atexit.register(lambda: say(end=time.monotonic()))
say(left=time.monotonic())
"""


def test_handlers_and_environment_stay_the_callers_also_while_ray_starts(mark, tmp_path):
    with driver(HANDLERS, tmp_path / "home") as running:
        running.heard()
        until(lambda: any("gcs_server" in command(pid) for pid in mark()), 30)
        running.process.send_signal(signal.SIGTERM)
        assert running.heard() == {"noted": True}
        assert running.heard() == {"same": True}
        assert running.heard() == {"same": True}
        left = running.heard()["left"]
        assert running.heard()["end"] - left < 2.0
        assert running.ended()[0] == 0
        assert mark() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_driver_killed_at_once(session, mark, number):
    running = session("sys.stdin.readline()")
    running.heard()
    processes = all_of(mark, running)
    assert len(processes) >= 8
    running.process.send_signal(number)
    assert running.process.wait(GONE_S) == -number
    until(lambda: not mark() and not alive(processes), GONE_S)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_driver_that_is_stopped_while_ray_starts(session, mark, number):
    running = session("sys.stdin.readline()")
    until(lambda: any("raylet" in command(pid) for pid in mark()), 30)
    running.process.send_signal(number)
    assert running.ended(40)[0] != 0
    until(lambda: not mark(), GONE_S)


def test_a_killed_keeper_is_done_without(session, mark):
    running = session("sys.stdin.readline()")
    running.heard()
    keeper = next(pid for pid in mark() if "squall.engine.ray.keeper" in command(pid))
    os.kill(keeper, signal.SIGKILL)
    running.tell()
    assert running.ended()[0] == 0
    assert mark() == []


TWICE = """
import ray
for _ in range(2):
    with local(cpus=1, folder=Path("run")) as cluster:
        say(pid=ray.get(role(ray).where.remote())[0], address=cluster.address)
        try:
            with local(cpus=1, folder=Path("run")):
                pass
        except SquallError as error:
            say(error=error.headline)
"""


def test_two_sessions_one_after_the_other_and_none_within_another(mark, tmp_path):
    with driver(TWICE, tmp_path / "home") as running:
        first, error, second, _ = [running.heard() for _ in range(4)]
        assert first["address"] != second["address"]
        assert error == {"error": "this process is connected to Ray already"}
        assert running.ended()[::2] == (0, "")
        assert mark() == []


# -- before anything is started ---------------------------------------------------------------------------------------


def test_too_little_shared_memory(monkeypatch, tmp_path):
    state = os.statvfs("/dev/shm")
    few = os.statvfs_result((*state[:1], 4096, *state[2:4], 16384, *state[5:]))
    monkeypatch.setattr(cluster_module.os, "statvfs", lambda _: few)
    with pytest.raises(InputError, match="too little shared memory in /dev/shm"), local(cpus=1, folder=tmp_path):
        pass


def test_ray_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"squall-train\[async\]"), local(cpus=1, folder=tmp_path):
        pass


FOREIGN = """
import ray
from ray._private import ray_constants
{change}
try:
    with local(cpus=1, folder=Path("run")):
        say(error="none")
except SquallError as error:
    say(error=error.headline)
"""


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("ray.util.get_node_ip_address = lambda: '10.1.2.3'", "Ray would listen where others can reach it"),
        ("import ray._raylet; ray._raylet.Config = None", "this version of Ray cannot be told which token to use"),
        ("import ray._raylet; ray._raylet.AuthenticationTokenLoader = None", "this version of Ray cannot be told"),
    ],
)
def test_a_version_of_ray_that_cannot_be_kept_safe(mark, tmp_path, change, error):
    with driver(FOREIGN.format(change=change), tmp_path / "home") as running:
        assert str(running.heard()["error"]).startswith(error)
        assert running.ended()[0] == 0
        assert not any("gcs_server" in command(pid) for pid in mark())


# -- somebody's cluster -----------------------------------------------------------------------------------------------

JOINS = """
start = time.monotonic()
free = float(sys.argv[2])
try:
    with joined(sys.argv[1], trusted="trusted" in sys.argv) as cluster:
        import ray
        cluster.require(cpus=free, gpus=0, what="the first", within=1.0)
        pid = ray.get(role(ray).where.remote())[0]
        say(address=cluster.address, nodes=len(cluster.nodes()), pid=pid, tls=cluster.tls)
        sys.stdin.readline()
        cluster.require(cpus=9, gpus=0, what="7 replicas, 2 shards", within=1.0)
except SquallError as error:
    import ray
    say(error=error.render(), kind=type(error).__name__, left=not ray.is_initialized(), s=time.monotonic() - start)
"""

OPEN = """
import ray
from squall.engine.ray import surroundings
with surroundings.environment({"RAY_AUTH_MODE": "disabled"}), surroundings.silence(), surroundings.loopback():
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=75 << 20, log_to_driver=False,
             _temp_dir=sys.argv[1], configure_logging=False)
say(address=ray.get_runtime_context().gcs_address)
sys.stdin.readline()
ray.shutdown()
"""


@pytest.fixture
def host(session, mark) -> tuple[Driver, str, str]:
    """A cluster with two CPUs, its address and its token."""
    running = session("say(ready=True); sys.stdin.readline(); say(pid=ray.get(one.where.remote())[0])")
    address = running.heard()["address"]
    running.heard()
    return running, str(address), variable(of_session(mark, running)[0], "RAY_AUTH_TOKEN")


def test_a_cluster_with_a_token_is_joined_and_left(host, mark, tmp_path):
    running, address, token = host
    before = [pid for pid in mark() if "gcs_server" in command(pid) or "raylet" in command(pid)]
    known = {"RAY_AUTH_TOKEN": token, "SQUALL_TEST_GUEST": "guest"}
    with driver(JOINS, tmp_path / "guest", address, "1", **known) as guest:
        facts = guest.heard()
        assert (facts["address"], facts["nodes"], facts["tls"]) == (address, 1, False)
        assert marked(b"SQUALL_TEST_GUEST=guest") == [guest.process.pid]  # it has started nothing
        guest.tell()
        error = guest.heard()
        assert (error["kind"], error["left"]) == ("InputError", True)
        assert "1 node with 2 CPUs, 0 GPUs" in str(error["error"])
        assert "9 CPUs, 0 GPUs for 7 replicas, 2 shards" in str(error["error"])
        assert guest.ended()[0::2] == (0, "")
    until(lambda: command(int(str(facts["pid"]))) == "", GONE_S)  # the guest's role has ended with it
    assert before
    assert all(map(command, before))
    running.tell()
    assert running.heard()["pid"]


def test_what_others_use_is_not_free(host, tmp_path):
    _, address, token = host
    with driver(JOINS, tmp_path / "guest", address, "2", RAY_AUTH_TOKEN=token) as guest:
        found = guest.heard()
        assert "1 CPUs, 0 GPUs free of 2 CPUs, 0 GPUs" in str(found["error"])


def test_roles_of_a_killed_guest_end(host, tmp_path):
    _, address, token = host
    with driver(JOINS, tmp_path / "guest", address, "1", RAY_AUTH_TOKEN=token) as guest:
        role = int(str(guest.heard()["pid"]))
        guest.process.kill()
        until(lambda: command(role) == "", GONE_S)


@pytest.mark.parametrize(
    ("known", "found"),
    [
        ({}, "it asks for a token, and there is none here"),
        ({"RAY_AUTH_TOKEN_PATH": "/dev/null"}, "it asks for a token, and there is none here"),
        ({"RAY_AUTH_TOKEN": "0" * 64}, "it asks for a token, and has another than this process"),
    ],
)
def test_without_the_token_nobody_gets_in(host, tmp_path, known, found):
    _, address, _ = host
    with driver(JOINS, tmp_path / "guest", address, "1", "trusted", **known) as guest:
        said = guest.heard()
        assert said["kind"] == "InputError"
        assert found in str(said["error"])
        assert "RAY_AUTH_TOKEN" in str(said["error"])
        assert guest.ended()[0::2] == (0, "")


@pytest.mark.parametrize("file", ["named", "home"])
def test_the_token_may_stand_in_a_file(host, tmp_path, file):
    _, address, token = host
    home = tmp_path / "guest"
    path = home / ".ray" / "auth_token" if file == "home" else tmp_path / "token"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{token}\n")
    known = {} if file == "home" else {"RAY_AUTH_TOKEN_PATH": str(path)}
    with driver(JOINS, home, address, "1", **known) as guest:
        assert guest.heard()["address"] == address


def test_a_cluster_that_lets_everybody_in_is_refused_unless_trusted(mark, temporary, tmp_path):
    with driver(OPEN, tmp_path / "host", str(temporary / "r")) as running:
        address = str(running.heard()["address"])
        with driver(JOINS, tmp_path / "guest", address, "1") as guest:
            found = guest.heard()
            assert found["kind"] == "InputError"
            assert "lets everybody in" in str(found["error"])
            assert "--trust-cluster" in str(found["error"])
        with driver(JOINS, tmp_path / "guest", address, "1", "trusted") as guest:
            assert guest.heard()["address"] == address
            guest.tell()
            assert "9 CPUs" in str(guest.heard()["error"])
            assert guest.ended()[0::2] == (0, "")
        running.tell()
        assert running.ended()[0] == 0
    shutil.rmtree(temporary / "r")  # Ray alone leaves it


def test_a_cluster_that_is_not_there():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(InputError, match=r"cannot be joined\n.*Connection refused"), joined(address):
        pass


def test_a_host_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(admission, "_REACH_S", 0.2)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as silent:
        address = silent.getsockname()
        with socket.create_connection(address), socket.socket() as second:  # its queue is full now: SYNs are dropped
            second.setblocking(False)
            second.connect_ex(address)
            with pytest.raises(InputError, match="no answer within"), joined(f"127.0.0.1:{address[1]}"):
                pass


def test_something_else_listens_there():
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and says nothing
        start = time.monotonic()
        with (
            pytest.raises(InputError, match="does not answer as Ray does"),
            joined(f"127.0.0.1:{silent.getsockname()[1]}"),
        ):
            pass
        assert time.monotonic() - start < 30


@pytest.mark.parametrize("address", ["ray://10.0.0.1:10001", "10.0.0.1", ":6379", "10.0.0.1:port", "10.0.0.1:0"])
def test_no_address(address):
    with pytest.raises(InputError, match="is no address of a Ray cluster"), joined(address):
        pass


def test_a_machine_that_is_no_node(monkeypatch):
    monkeypatch.setattr(admission, "look", lambda *_: Seen(nodes=("203.0.113.1", "203.0.113.2")))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with (
            pytest.raises(InputError, match=r"none of its nodes: 203.0.113.1, 203.0.113.2"),
            joined(address, trusted=True),
        ):
            pass


# -- where roles write ------------------------------------------------------------------------------------------------

WRITES = """
import subprocess
from squall.engine.ray.output import write_to
write_to(Path(sys.argv[1]))
print("by print")
print("to standard error", file=sys.stderr)
subprocess.run(["echo", "by a child"])
os.write(2, b"by C\\n")
"""


def test_a_role_writes_into_a_file_and_below_what_is_there(tmp_path):
    path = tmp_path / "run" / "logs" / "shard-0.log"
    for _ in range(2):
        with driver(WRITES, tmp_path / "home", str(path)) as running:
            assert running.ended() == (0, "", "")
    assert path.read_text() == 2 * "by print\nto standard error\nby a child\nby C\n"
