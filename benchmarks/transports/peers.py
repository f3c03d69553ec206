"""Other libraries' ways of calling a process with a vector, each in the form in which it is fastest here."""

from __future__ import annotations

import importlib.util
import os
import secrets
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import harness
import numpy as np
import torch

from transports.base import DEADLINE_S, EPS, RATE, SPAWN, Driven, Shard, Where

STORE = 1 << 30  # bytes of Ray's object store: it holds a gradient and twice the weights


class TorchRpc(Driven):
    """torch.distributed.rpc over TensorPipe, its default: rpc_sync of a function of tensors."""

    @classmethod
    @contextmanager
    def callee(cls, num_elements: int, where: Where) -> Iterator[Callable[[Any], Any]]:
        from torch.distributed import rpc

        os.environ["TP_SOCKET_IFNAME"] = "lo"
        warnings.filterwarnings("ignore", "You are using a Backend")  # torch's own use of itself
        with TemporaryDirectory() as folder:
            process = SPAWN.Process(target=rpc_callee, args=(folder, num_elements))
            process.start()
            join_rpc("caller", 0, folder)
            rpc.rpc_sync("callee", rpc_keep, (num_elements,), timeout=DEADLINE_S)
            try:
                yield lambda gradient: rpc.rpc_sync("callee", rpc_apply, (gradient,), timeout=DEADLINE_S)
            finally:
                rpc.shutdown(timeout=10)
                process.join(10)
                process.kill()


kept: list[Shard] = []


def rpc_keep(num_elements: int) -> None:
    kept.append(Shard(num_elements))


def rpc_apply(gradient: torch.Tensor) -> torch.Tensor:
    return kept[0].apply(gradient)


def rpc_callee(folder: str, num_elements: int) -> None:
    from torch.distributed import rpc

    torch.set_num_threads(1)
    join_rpc("callee", 1, folder)
    rpc.shutdown(timeout=0)  # once the caller does


def join_rpc(name: str, rank: int, folder: str) -> None:
    from torch.distributed import rpc

    options = rpc.TensorPipeRpcBackendOptions(init_method=f"file://{folder}/store", rpc_timeout=DEADLINE_S)
    rpc.init_rpc(name, rank=rank, world_size=2, rpc_backend_options=options)


class NumPyKeeper:
    """A parameter server as it stands in many a tutorial, without a temporary array too many."""

    def __init__(self, num_elements: int) -> None:
        self.weights, self.sums, self.step = (np.zeros(num_elements, np.float32) for _ in range(3))
        self.root = np.empty_like(self.sums)

    def push_pull(self, gradient: Any) -> Any:
        np.multiply(gradient, gradient, out=self.root)
        np.add(self.sums, self.root, out=self.sums)
        np.sqrt(self.sums, out=self.root)
        np.add(self.root, np.float32(EPS), out=self.root)
        np.multiply(gradient, np.float32(RATE), out=self.step)
        np.divide(self.step, self.root, out=self.step)
        return np.subtract(self.weights, self.step, out=self.weights)


class FusedKeeper:
    """The same with torch's fused kernel on the arrays' memory, which Ray maps without a copy."""

    def __init__(self, num_elements: int) -> None:
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nor is it written
        self.shard = Shard(num_elements)

    def push_pull(self, gradient: Any) -> Any:
        return self.shard.apply(torch.from_numpy(gradient)).numpy()


class RayActor(Driven):
    """A plain Ray actor that keeps a NumPy array: ray.get(actor.push_pull.remote(array))."""

    between_hosts = True
    takes_arrays = True
    exact = False  # sums of squares are rounded after each operation
    keeper: type = NumPyKeeper

    @classmethod
    @contextmanager
    def callee(cls, num_elements: int, where: Where) -> Iterator[Callable[[Any], Any]]:
        os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else one is left in the home folder
        import ray

        with TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
            own = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": STORE, "_temp_dir": folder}
            ray.init(
                address=where.ray or "local", log_to_driver=False, logging_level="error", **({} if where.ray else own)
            )
            try:
                keeper = ray.remote(cls.keeper).options(num_cpus=2).remote(num_elements)
                yield lambda gradient: ray.get(keeper.push_pull.remote(gradient), timeout=DEADLINE_S)
            finally:
                ray.kill(keeper)
                ray.shutdown()


class FusedRayActor(RayActor):
    """The same with torch's kernel in the actor."""

    exact = True
    keeper = FusedKeeper


class MonarchActor(Driven):
    """A Monarch actor in a process of its own on this machine; an endpoint of NumPy arrays, one call and its answer."""

    takes_arrays = True

    @classmethod
    def lacks(cls) -> str:
        return "" if importlib.util.find_spec("monarch") else "no Monarch: pip install torchmonarch==0.7.0"

    @classmethod
    @contextmanager
    def callee(cls, num_elements: int, where: Where) -> Iterator[Callable[[Any], Any]]:
        from monarch.actor import Actor, endpoint, this_host

        class Keeper(Actor):
            def __init__(self, num_elements: int) -> None:
                self.shard = Shard(num_elements)

            @endpoint
            def push_pull(self, gradient: Any) -> Any:
                return self.shard.apply(torch.from_numpy(gradient)).numpy()

        os.environ["PYTHONPATH"] = str(harness.HERE)  # where its processes find this module
        processes = this_host().spawn_procs(per_host={"procs": 1})
        try:
            keeper = processes.spawn("keeper", Keeper, num_elements)
            yield lambda gradient: keeper.push_pull.call_one(gradient).get(timeout=DEADLINE_S)
        finally:
            processes.stop().get(timeout=DEADLINE_S)
