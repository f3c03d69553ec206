"""Real ranks that join, talk and lose each other: by our launcher, by torchrun, by hand."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from squall.cluster.world import join
from squall.engine.spmd import run_ranks

DEADLINE_S = 90

PRELUDE = """
import json, os, signal, socket, sys, threading
from pathlib import Path
from squall.engine.spmd import as_rank

def listening_and_connected(pid):
    inodes = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes:
                found.append([table, fields[1].split(":")[0], fields[3]])
    return found

def say(out, world, **facts):
    Path(out, f"{world.rank}.json").write_text(json.dumps(facts))
"""

TALKS = (
    PRELUDE
    + """
def main():
    import torch
    import torch.distributed as dist
    from squall.cluster.world import join, PeerMissingError
    from squall.errors import RunError
    world = join("cpu", timeout_s=60)
    rank, size, group = world.rank, world.size, world.group
    facts = {"place": [rank, size, world.local_rank, world.local_size], "default group": dist.is_initialized()}
    facts["threads"] = torch.get_num_threads()
    total = torch.full((5,), float(rank + 1))
    group.allreduce([total]).wait()
    facts["sum"] = total.tolist()
    # two messages a neighbour, received in the other order: tags keep them apart
    right, left = (rank + 1) % size, (rank - 1) % size
    first, second = torch.empty(3), torch.empty(3)
    receives = [group.recv([second], left, 8), group.recv([first], left, 7)]
    sends = [group.send([torch.full((3,), 10.0 * rank + tag)], right, tag) for tag in (7, 8)]
    for work in sends + receives:
        work.wait()
    facts["tagged"] = [first[0].item(), second[0].item()]
    one = torch.full((1,), float(rank))
    every = [torch.empty(1) for _ in range(size)]
    group.allgather([every], [one]).wait()
    facts["gathered"] = torch.cat(every).tolist()
    world.put(f"pid/{rank}", str(os.getpid()))
    pids = [int(world.get(f"pid/{other}")) for other in range(size)] + [os.getppid()]
    facts["sockets"] = [listening_and_connected(pid) for pid in pids] if rank == 0 else []
    quick = type(world)(rank, size, rank, size, world.device, None, world.store, timeout_s=0.05)
    try:
        quick.get("nobody puts this")
    except PeerMissingError as error:
        facts["deadline"] = error.text()
    group.barrier().wait()
    del work, sends, receives, quick  # messages hold the sockets, `quick` the store; `group` may well stay
    world.close()
    world.close()
    own = [entry for entry in listening_and_connected(os.getpid()) if entry[2] == "0A"]
    threads = [Path("/proc/self/task", thread, "comm").read_text() for thread in os.listdir("/proc/self/task")]
    facts["closed"] = [world.group is None, world.store is None, own, [name for name in threads if "gloo" in name]]
    try:
        group.barrier()
    except RunError as error:
        facts["parted"] = error.text()
    say(sys.argv[1], world, **facts)
    return 0
sys.exit(as_rank(main))
"""
)

FAILS = (
    PRELUDE
    + """
def main():
    import torch
    from squall.cluster.world import join
    world = join("cpu", timeout_s=60)
    if world.rank == 1:
        if sys.argv[1] == "raise":
            raise KeyError("gooseneck")
        os.kill(os.getpid(), signal.SIGKILL)
    world.group.allreduce([torch.ones(3)]).wait()
sys.exit(as_rank(main))
"""
)

MISSES = (
    PRELUDE
    + """
from squall.cluster.world import join, PeerMissingError
try:
    join("cpu", timeout_s=float(sys.argv[1]))
except PeerMissingError as error:
    print(error.text())
"""
)

PLACE_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID")


def written(path: Path, text: str) -> str:
    script = path / "rank.py"
    script.write_text(text)
    return str(script)


def said(folder: Path, size: int) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def is_loopback(address: str) -> bool:
    """An address as the kernel's tables print it: hexadecimal words, each in host byte order."""
    data = b"".join(bytes.fromhex(address[start : start + 8])[::-1] for start in range(0, len(address), 8))
    if len(data) == 4:
        return socket.inet_ntop(socket.AF_INET, data).startswith("127.")
    text = socket.inet_ntop(socket.AF_INET6, data)
    return text == "::1" or text.startswith("::ffff:127.")


def check_talk(facts: list[dict[str, Any]], size: int) -> None:
    for rank, fact in enumerate(facts):
        left = (rank - 1) % size
        assert fact["place"] == [rank, size, rank, size]
        assert fact["default group"] is False
        assert fact["sum"] == [size * (size + 1) / 2] * 5
        assert fact["tagged"] == [10 * left + 7, 10 * left + 8]
        assert fact["gathered"] == list(range(size))
        assert f"rank {rank} waited 0.05 s for 'nobody puts this'" in fact["deadline"]
        assert f"local rank {', '.join(str(r) for r in range(size) if r != rank)} of machine 0" in fact["deadline"]
        assert fact["closed"] == [True, True, [], []]  # also its threads, though somebody still holds the group
        assert "after they had parted" in fact["parted"]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("launched")
    outcome = run_ranks([written(folder, TALKS), str(folder)], 2, threads=1)
    assert outcome.status == 0, outcome.message
    return said(folder, 2)


def test_ranks_of_the_launcher_talk_without_a_default_group(launched: list[dict[str, Any]]) -> None:
    check_talk(launched, 2)
    assert [fact["threads"] for fact in launched] == [1, 1]


def test_every_socket_of_launcher_and_ranks_is_on_loopback(launched: list[dict[str, Any]]) -> None:
    of_ranks, of_launcher = launched[0]["sockets"][:-1], launched[0]["sockets"][-1]
    entries = [entry for process in (*of_ranks, of_launcher) for entry in process]
    assert all(is_loopback(address) for _, address, _ in entries), entries
    listening = "0A"
    assert any(state == listening for _, _, state in of_launcher)  # the store
    assert all(any(state == listening for _, _, state in rank) for rank in of_ranks)  # Gloo


def test_kernel_addresses_are_read_rightly() -> None:
    assert is_loopback("0100007F")
    assert not is_loopback("00000000")
    assert is_loopback("0000000000000000FFFF00000100007F")
    assert is_loopback("00000000000000000000000001000000")
    assert not is_loopback("00000000000000000000000000000000")


def by_hand(script: str, argument: str, rank: int, size: int, port: int) -> subprocess.Popen[str]:
    environ = {key: value for key, value in os.environ.items() if key not in PLACE_VARIABLES}
    environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    environ |= {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "FATAL"}
    command = [sys.executable, script, argument]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def test_ranks_started_by_hand_meet_at_rank_0_on_loopback(tmp_path: Path) -> None:
    script, port = written(tmp_path, TALKS), free_port()
    ranks = [by_hand(script, str(tmp_path), rank, 3, port) for rank in range(3)]
    for rank in ranks:
        _, err = rank.communicate(timeout=DEADLINE_S)
        assert rank.returncode == 0, err
    facts = said(tmp_path, 3)
    check_talk(facts, 3)
    assert all(is_loopback(address) for rank in facts[0]["sockets"][:-1] for _, address, _ in rank)


def test_a_rank_that_does_not_come_is_named(tmp_path: Path) -> None:
    rank = by_hand(written(tmp_path, MISSES), "0.5", 0, 3, free_port())
    out, err = rank.communicate(timeout=DEADLINE_S)
    assert rank.returncode == 0, err
    assert "rank 0 of 3 found not all others within 0.5 s" in out
    assert "waited for   rank 1, 2 (store at localhost:" in out


def test_ranks_of_torchrun_join_what_is_there(tmp_path: Path) -> None:
    environ = {key: value for key, value in os.environ.items() if key not in PLACE_VARIABLES}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, written(tmp_path, TALKS), str(tmp_path)],
        env=environ | {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "FATAL"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    check_talk(said(tmp_path, 2), 2)


def test_the_error_that_cost_the_others_their_peer_is_the_one_shown(tmp_path: Path) -> None:
    outcome = run_ranks([written(tmp_path, FAILS), "raise"], 2, threads=1)
    assert outcome.status == 1
    assert outcome.message.startswith("squall: rank 1 failed\n")
    assert "KeyError: 'gooseneck'" in outcome.message
    assert "1 other rank stopped in" in outcome.message


def test_a_killed_rank_is_the_reason_though_only_the_others_could_speak(tmp_path: Path) -> None:
    outcome = run_ranks([written(tmp_path, FAILS), "kill"], 2, threads=1)
    assert outcome.status == 1
    assert outcome.message.startswith("squall: rank 1 of 2 was killed by SIGKILL")
    assert "Traceback" not in outcome.message


def test_a_process_alone_is_a_world_of_one_without_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PLACE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    before = os.listdir("/proc/self/fd")
    world = join("cpu")
    assert (world.rank, world.size, world.local_rank, world.local_size) == (0, 1, 0, 1)
    assert world.group is None
    assert world.store is None
    world.put("key", "value")
    assert world.get("key") == "value"
    world.close()
    assert os.listdir("/proc/self/fd") == before
