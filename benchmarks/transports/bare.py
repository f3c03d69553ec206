"""The limits, without an engine: bare shared memory, a bare Gloo pair; and Squall's own ways of carrying alone."""

from __future__ import annotations

import itertools
import mmap
import os
import sys
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from squall.cluster.program import LostError
from squall.engine.ray import memory, pairs
from transports.base import DEADLINE_S, Direct, Shard, Where

PIECE = 4 << 20  # elements: 16 MiB


class BareMemory(Direct):
    """The limit: two memory files mapped once, and a byte in a pipe each way."""

    def ready(self) -> None:
        self.pushed, self.push_fd = mapped(self.pushed)
        self.pulled, self.pull_fd = mapped(self.pulled)
        self.pipe.send([f"/proc/{os.getpid()}/fd/{fd}" for fd in (self.push_fd, self.pull_fd)])
        super().ready()

    def exchange(self) -> None:
        os.write(self.pipe.fileno(), b"x")
        os.read(self.pipe.fileno(), 1)

    @classmethod
    def serve(cls, pipe: Connection, num_elements: int, where: Where) -> None:
        pushed, pulled = (
            torch.from_file(path, shared=True, size=num_elements, dtype=torch.float32) for path in pipe.recv()
        )
        shard = Shard(num_elements)
        pipe.send("ready")
        while os.read(pipe.fileno(), 1):
            pulled.copy_(shard.apply(pushed))
            os.write(pipe.fileno(), b"x")


class Windows(Direct):
    """Squall's windows of shared memory: places travel with each call, as the engine sends them."""

    def ready(self) -> None:
        source = self.pushed
        self.pushed = memory.window(source.numel(), source.dtype).copy_(source)
        self.pulled = memory.window(source.numel(), source.dtype)
        super().ready()

    def exchange(self) -> None:
        self.pipe.send((memory.describe(self.pushed), memory.describe(self.pulled)))
        assert self.pipe.recv() == "done"

    @classmethod
    def serve(cls, pipe: Connection, num_elements: int, where: Where) -> None:
        shard = Shard(num_elements)
        pipe.send("ready")
        while True:
            pushed, pulled = pipe.recv()
            memory.attach(pulled).copy_(shard.apply(memory.attach(pushed)))
            pipe.send("done")


class BareGloo(Direct):
    """A Gloo group of two, and each tensor as one message."""

    between_hosts = True
    piece = sys.maxsize

    def ready(self) -> None:
        host = self.where.addresses[0]
        store = dist.TCPStore(host, 0, None, True, timedelta(seconds=DEADLINE_S), wait_for_workers=False)
        self.pipe.send(store.port)
        self.group = gloo(store, 0, host)
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
    def serve(cls, pipe: Connection, num_elements: int, where: Where) -> None:
        store = dist.TCPStore(where.addresses[0], pipe.recv(), None, False, timedelta(seconds=DEADLINE_S))
        group = gloo(store, 1, where.addresses[1])
        shard, pushed = Shard(num_elements), torch.zeros(num_elements)
        pipe.send("ready")
        with suppress(RuntimeError):  # the caller has gone
            while True:
                finish([group.recv([piece], 0, 0) for piece in cls.pieces(pushed)])
                finish([group.send([piece], 0, 1) for piece in cls.pieces(shard.apply(pushed))])


class BareGlooPieces(BareGloo):
    """The same in pieces."""

    piece = PIECE


class Pairs(Direct):
    """Squall's pairs, alone: what a call says beside its tensors is left out, as above."""

    between_hosts = True

    def ready(self) -> None:
        opening = pairs.offer(self.where.addresses[0], "callee", DEADLINE_S)
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

    @classmethod
    def serve(cls, pipe: Connection, num_elements: int, where: Where) -> None:
        opening = pairs.accept(pipe.recv(), where.addresses[1], "caller", DEADLINE_S)
        pipe.send(opening.words)
        pair = opening.join()
        shard, pushed = Shard(num_elements), torch.zeros(num_elements)
        pipe.send("ready")
        with suppress(LostError):  # the caller has gone
            for number in itertools.count(2, 2):
                pair.receive(pushed, number, DEADLINE_S)
                pair.send(shard.apply(pushed), number + 1, DEADLINE_S)


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
