"""How fast a gradient reaches a parameter server and weights come back: push and pull in one call, Adagrad applied.

    python benchmarks/transport.py [--elements 25000000] [--rounds 15] [--only NAME ...]
    python benchmarks/transport.py --hosts            # as root: caller and callee in two network namespaces

Each contender has a callee in a process of its own, which holds the weights as one flat parameter and applies torch's
fused Adagrad to the gradient that comes; the caller waits until it has the new weights. All contenders are started
first and then asked in turns, one call each, so that they meet the same conditions; one thread of torch a process.
What each gives back after its first call is held against the same step done here.

A contender is a `Contender` in `CONTENDERS`: `serve` is the callee's side, `exchange` one call of the caller.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import mmap
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import harness
import torch
import torch.distributed as dist

from squall.cluster.program import LostError
from squall.engine.ray import memory, pairs

SPAWN = multiprocessing.get_context("spawn")
DEADLINE_S = 60.0
PIECE = 4 << 20  # elements: 16 MiB
LOOPBACK = "127.0.0.1"
ADDRESSES = ("10.87.4.1", "10.87.4.2")
NEW_NETWORK = 0x40000000  # CLONE_NEWNET, sched.h


class Shard:
    """The callee's work, the same for all."""

    def __init__(self, num_elements: int) -> None:
        self.weights = torch.nn.Parameter(torch.zeros(num_elements))
        self.rule = torch.optim.Adagrad([self.weights], lr=0.01, eps=1e-20, fused=True)

    def apply(self, gradient: torch.Tensor) -> torch.Tensor:
        self.weights.grad = gradient
        self.rule.step()
        return self.weights.detach()


class Contender:
    """A caller, whose callee runs `serve` in a process of its own, on another host where one is named."""

    between_hosts = False
    """Whether it works without shared memory."""

    def __init__(self, gradient: torch.Tensor, hosts: tuple[str, str], space: str) -> None:
        self.pulled = torch.zeros_like(gradient)
        self.pushed = gradient
        self.hosts = hosts
        self.pipe, there = SPAWN.Pipe()
        arguments = (type(self), there, gradient.numel(), hosts, space)
        self.process = SPAWN.Process(target=callee, args=arguments, daemon=True)
        self.process.start()
        there.close()

    def ready(self) -> None:
        """Meets the callee."""
        assert self.pipe.recv() == "ready"

    def exchange(self) -> None:
        """One push and pull: `pushed` is applied, `pulled` has the weights."""
        raise NotImplementedError

    @staticmethod
    def serve(pipe: Connection, num_elements: int, hosts: tuple[str, str]) -> None:
        """The callee's side; ends with an EOFError when the caller goes."""
        raise NotImplementedError

    def leave(self) -> None:
        """Lets the callee notice that it is over, beside the end of the pipe."""

    def close(self) -> None:
        self.pipe.close()
        self.leave()
        self.process.join(10)
        self.process.kill()


def callee(kind: type[Contender], pipe: Connection, num_elements: int, hosts: tuple[str, str], space: str) -> None:
    if space:
        enter(space)
    torch.set_num_threads(1)
    with suppress(EOFError, ConnectionResetError):
        kind.serve(pipe, num_elements, hosts)


class BareMemory(Contender):
    """The limit: two memory files mapped once, and a byte in a pipe each way."""

    def ready(self) -> None:
        self.pushed, self.push_fd = mapped(self.pushed)
        self.pulled, self.pull_fd = mapped(self.pulled)
        self.pipe.send([f"/proc/{os.getpid()}/fd/{fd}" for fd in (self.push_fd, self.pull_fd)])
        super().ready()

    def exchange(self) -> None:
        os.write(self.pipe.fileno(), b"x")
        os.read(self.pipe.fileno(), 1)

    @staticmethod
    def serve(pipe: Connection, num_elements: int, hosts: tuple[str, str]) -> None:
        pushed, pulled = (
            torch.from_file(path, shared=True, size=num_elements, dtype=torch.float32) for path in pipe.recv()
        )
        shard = Shard(num_elements)
        pipe.send("ready")
        while os.read(pipe.fileno(), 1):
            pulled.copy_(shard.apply(pushed))
            os.write(pipe.fileno(), b"x")


class Windows(Contender):
    """Squall's windows of shared memory: places travel with each call, as the engine sends them."""

    def ready(self) -> None:
        source = self.pushed
        self.pushed = memory.window(source.numel(), source.dtype).copy_(source)
        self.pulled = memory.window(source.numel(), source.dtype)
        super().ready()

    def exchange(self) -> None:
        self.pipe.send((memory.describe(self.pushed), memory.describe(self.pulled)))
        assert self.pipe.recv() == "done"

    @staticmethod
    def serve(pipe: Connection, num_elements: int, hosts: tuple[str, str]) -> None:
        shard = Shard(num_elements)
        pipe.send("ready")
        while True:
            pushed, pulled = pipe.recv()
            memory.attach(pulled).copy_(shard.apply(memory.attach(pushed)))
            pipe.send("done")


class BareGloo(Contender):
    """A Gloo group of two, and each tensor as one message."""

    between_hosts = True
    piece = sys.maxsize

    def ready(self) -> None:
        store = dist.TCPStore(self.hosts[0], 0, None, True, timedelta(seconds=DEADLINE_S), wait_for_workers=False)
        self.pipe.send(store.port)
        self.group = gloo(store, 0, self.hosts[0])
        super().ready()

    def exchange(self) -> None:
        finish([self.group.send([piece], 1, 0) for piece in self.pieces(self.pushed)])
        finish([self.group.recv([piece], 1, 1) for piece in self.pieces(self.pulled)])

    def leave(self) -> None:
        del self.group

    @classmethod
    def pieces(cls, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tensor.split(min(cls.piece, tensor.numel()))

    @classmethod
    def serve(cls, pipe: Connection, num_elements: int, hosts: tuple[str, str]) -> None:  # type: ignore[override]
        store = dist.TCPStore(hosts[0], pipe.recv(), None, False, timedelta(seconds=DEADLINE_S))
        group = gloo(store, 1, hosts[1])
        shard, pushed = Shard(num_elements), torch.zeros(num_elements)
        pipe.send("ready")
        with suppress(RuntimeError):  # the caller has gone
            while True:
                finish([group.recv([piece], 0, 0) for piece in cls.pieces(pushed)])
                finish([group.send([piece], 0, 1) for piece in cls.pieces(shard.apply(pushed))])


class BareGlooPieces(BareGloo):
    """The same in pieces."""

    piece = PIECE


class Pairs(Contender):
    """Squall's pairs, alone: what a call says beside its tensors is left out, as above."""

    between_hosts = True

    def ready(self) -> None:
        opening = pairs.offer(self.hosts[0], "callee", DEADLINE_S)
        self.pipe.send(opening.words)
        self.pair = opening.join(self.pipe.recv())
        self.number = 0
        super().ready()

    def exchange(self) -> None:
        self.number += 2
        self.pair.send(self.pushed, self.number, DEADLINE_S)
        self.pair.receive(self.pulled, self.number + 1, DEADLINE_S)

    def leave(self) -> None:
        self.pair.close()

    @staticmethod
    def serve(pipe: Connection, num_elements: int, hosts: tuple[str, str]) -> None:
        opening = pairs.accept(pipe.recv(), hosts[1], "caller", DEADLINE_S)
        pipe.send(opening.words)
        pair = opening.join()
        shard, pushed = Shard(num_elements), torch.zeros(num_elements)
        pipe.send("ready")
        with suppress(LostError):  # the caller has gone
            for number in itertools.count(2, 2):
                pair.receive(pushed, number, DEADLINE_S)
                pair.send(shard.apply(pushed), number + 1, DEADLINE_S)


CONTENDERS: dict[str, type[Contender]] = {
    "bare_memory": BareMemory,
    "squall_windows": Windows,
    "bare_gloo_whole": BareGloo,
    "bare_gloo_pieces": BareGlooPieces,
    "squall_pairs": Pairs,
}


def mapped(source: torch.Tensor) -> tuple[torch.Tensor, int]:
    """A copy in a memory file, without any of Squall's code."""
    fd = os.memfd_create("bare")
    os.posix_fallocate(fd, 0, source.nbytes)
    return torch.frombuffer(mmap.mmap(fd, source.nbytes), dtype=source.dtype).copy_(source), fd


def gloo(store: Any, rank: int, host: str) -> Any:
    kind: Any = dist.ProcessGroupGloo
    options = kind._Options()
    options._devices = [kind.create_device(hostname=host)]
    options._timeout = timedelta(seconds=DEADLINE_S)
    return kind(store, rank, 2, options)


def finish(works: list[Any]) -> None:
    for work in works:
        work.wait()


def enter(space: str) -> None:
    """Moves this process into a network namespace."""
    with Path(f"/run/netns/{space}").open("rb") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), NEW_NETWORK):
            raise OSError(ctypes.get_errno(), "setns")


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


def measure(names: list[str], num_elements: int, rounds: int, space: str, records: harness.Records) -> None:
    """All contenders in turns; each call is one record."""
    hosts = ADDRESSES if space else (LOOPBACK, LOOPBACK)
    gradient = torch.randn(num_elements, generator=torch.Generator().manual_seed(0))
    expected = Shard(num_elements).apply(gradient.clone())
    contenders = {name: CONTENDERS[name](gradient, hosts, space) for name in names}
    try:
        for name, contender in contenders.items():
            contender.ready()
            contender.exchange()
            if not torch.equal(contender.pulled, expected):
                raise harness.FailedError(f"{name}: the weights that came back are not those of one step")
        for turn in range(rounds):
            for name, contender in contenders.items():
                begin = time.perf_counter()
                contender.exchange()
                seconds = time.perf_counter() - begin
                records.write(
                    {"kind": "run", "contender": f"{name} {num_elements:,}", "round": turn, "seconds": seconds}
                )
    finally:
        for contender in contenders.values():
            contender.close()


def show(path: Path, elements: list[int], first: str) -> None:
    """The table: medians, bytes both ways over time, and the ratio of speeds inside each round."""
    times = harness.rounds_of(harness.read(path), "seconds")
    rows = []
    for name, by_round in times.items():
        num_elements = int(name.rpartition(" ")[2].replace(",", ""))
        median = statistics.median(by_round.values())
        speeds = {number: 1 / seconds for number, seconds in by_round.items()}
        other = times.get(f"{first} {num_elements:,}", {})
        ratio = harness.median_ratio(speeds, {number: 1 / seconds for number, seconds in other.items()})
        gigabytes = 8 * num_elements / median / 1e9
        rows.append([name, f"{1e3 * median:.2f}", f"{gigabytes:.2f}", "" if ratio is None else f"{ratio:.2f}x"])
    print(harness.table(["push + pull", "ms", "GB/s", f"of {first}"], rows))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--elements", type=int, nargs="+", default=[25_000_000, 1000])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--hosts", action="store_true", help="between two network namespaces; root only")
    parser.add_argument("--show", type=Path, help="prints the table of an old record")
    given = parser.parse_args()
    names = [name for name in given.only if CONTENDERS[name].between_hosts or not given.hosts]
    first = names[0] if names else ""
    if given.show:
        show(given.show, given.elements, first)
        return
    torch.set_num_threads(1)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # of the callees: namespaces have no names for addresses
    settings = {"elements": given.elements, "rounds": given.rounds, "hosts": given.hosts, "contenders": names}
    records = harness.Records("transport", settings)
    with two_hosts() if given.hosts else nullcontext() as spaces:
        for num_elements in given.elements:
            measure(names, num_elements, given.rounds, spaces[1] if spaces else "", records)
    show(records.path, given.elements, first)
    print(f"\nrecords: {records.path}")


if __name__ == "__main__":
    main()
