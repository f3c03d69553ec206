"""Runs a function on several real processes that form one Gloo job.

Processes come from a fork server that has torch loaded, which saves most of a second each. They meet in a file store
(no port), and hand their results back as plain objects; the first error of any of them is raised here.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from squall.cluster.group import Group
from squall.cluster.world import World, listener, open_store

_CONTEXT = multiprocessing.get_context("forkserver")
# torch.optim imports torch._dynamo at its first update: two seconds in each process unless it is there already
_CONTEXT.set_forkserver_preload(["torch", "torch._dynamo", "squall.training", "numpy"])
_DEADLINE_S = 100


def run_job(function: Callable[..., Any], num_processes: int, *arguments: Any, **named: Any) -> list[Any]:
    """Calls `function(*arguments, world=..., **named)` on each rank; returns the ranks' results in order."""
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        pipes: list[Connection] = []
        processes = []
        for rank in range(num_processes):
            receiver, sender = _CONTEXT.Pipe(duplex=False)
            process = _CONTEXT.Process(
                target=_rank, args=(sender, store, rank, num_processes, function, arguments, named), daemon=True
            )
            process.start()
            sender.close()
            pipes.append(receiver)
            processes.append(process)
        results: dict[int, Any] = {}
        failure = ""
        waiting = dict(zip(pipes, range(num_processes), strict=True))
        while waiting and not failure:
            ready = wait(list(waiting), timeout=_DEADLINE_S)
            if not ready:
                failure = f"ranks {sorted(waiting.values())} gave no answer within {_DEADLINE_S} s"
            for pipe in ready:
                rank = waiting.pop(pipe)  # type: ignore[arg-type]
                try:
                    kind, value = pipe.recv()  # type: ignore[union-attr]
                except EOFError:
                    kind, value = "error", f"rank {rank} died"
                if kind == "error":
                    failure = failure or str(value)
                results[rank] = value
        for process in processes:
            if failure:
                process.kill()
            process.join(10)
        for pipe in pipes:
            pipe.close()
    if failure:
        raise AssertionError(failure)
    return [pickle.loads(results[rank]) for rank in range(num_processes)]


def _rank(
    pipe: Connection, store: str, rank: int, size: int, function: Callable[..., Any], arguments: Any, named: Any
) -> None:
    torch.set_num_threads(1)
    try:
        world = make_world(store, rank, size)
        pipe.send(("result", pickle.dumps(function(*arguments, world=world, **named))))
        world.close()
    except BaseException:
        pipe.send(("error", f"rank {rank}:\n{traceback.format_exc()}"))
    finally:
        pipe.close()


@contextmanager
def torchrun_job(size: int) -> Iterator[Callable[[int], None]]:
    """The environment and the store that torchrun gives its ranks; call it with the rank to be from now on."""
    server = listener()
    port = server.getsockname()[1]
    store = open_store(server, timedelta(seconds=10))
    fixed = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}

    def become(rank: int) -> None:
        values = {**fixed, "RANK": rank, "LOCAL_RANK": rank, "TORCHELASTIC_USE_AGENT_STORE": "True"}
        os.environ.update({name: str(value) for name, value in values.items()})

    before = dict(os.environ)
    try:
        become(0)
        yield become
    finally:
        os.environ.clear()
        os.environ.update(before)
        del store


def make_world(store: str, rank: int, size: int) -> World:
    """A world whose ranks meet in a file."""
    meeting = dist.FileStore(store, size)
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]  # type: ignore[attr-defined]
    options._timeout = timedelta(seconds=60)
    gloo = dist.ProcessGroupGloo(dist.PrefixStore("group", meeting), rank, size, options)  # type: ignore[attr-defined]
    text = dist.PrefixStore("text", meeting)
    return World(rank, size, rank, size, torch.device("cpu"), Group(gloo), text, timeout_s=60)
