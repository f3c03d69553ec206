"""Holds a data set in memory once per machine, whatever number of processes trains on it.

The first process of a machine loads the set and copies its arrays into anonymous memory files (`memfd_create`); the
others map the same pages through ``/proc/PID/fd/N``. Such memory has no name, so nothing is left behind however the
processes end, and it is not bound by the size of /dev/shm. It is sealed: nobody can change or cut it any more. A
mapping outlives the process that published it; only attaching needs it alive.

(`multiprocessing.shared_memory` would do neither: on Python 3.11 any process that attaches deletes the owner's segment
when it ends, and a killed group leaves the file.)
"""

from __future__ import annotations

import dataclasses
import fcntl
import importlib
import json
import mmap
import os
import secrets
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from squall import errors
from squall.errors import RunError, SquallError

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Handle:
    """An array in anonymous shared memory, as its owner knows it. Keep it until all others have attached."""

    pid: int
    fd: int
    token: str
    dtype: str
    shape: tuple[int, ...]

    def key(self) -> str:
        """What `attach` needs, in one line: process, descriptor, a token against mistaken ones, dtype, shape."""
        return f"{self.pid}:{self.fd}:{self.token}:{self.dtype}:{'x'.join(map(str, self.shape))}"

    def close(self) -> None:
        """Lets nobody attach any more; mappings stay."""
        os.close(self.fd)


def publish(array: npt.NDArray[Any]) -> Handle:
    """Copies an array into sealed anonymous memory that other processes of this machine and user can attach."""
    if array.dtype.hasobject or array.dtype.names:
        raise TypeError(f"an array of {array.dtype} cannot be shared: numbers and fixed-length strings can")
    flat = np.ascontiguousarray(array).reshape(-1)
    token = secrets.token_hex(8)
    fd = os.memfd_create(f"squall-{token}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        rest = flat.view(np.uint8).data
        while rest:
            rest = rest[os.write(fd, rest) :]
        fcntl.fcntl(
            fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        )
    except BaseException:
        os.close(fd)
        raise
    return Handle(os.getpid(), fd, token, array.dtype.str, array.shape)


def attach(key: str) -> npt.NDArray[Any]:
    """Maps a published array, read-only.

    Arguments:
        key: from `Handle.key` of a living process of this machine.

    Raises:
        RunError: the owner is gone, belongs to another user or machine, or the key names something else.
    """
    array, _ = _attach(key)
    return array


def _attach(key: str) -> tuple[npt.NDArray[Any], mmap.mmap | None]:
    try:
        pid, fd, token, dtype, dimensions = key.split(":")
        shape = tuple(int(edge) for edge in dimensions.split("x") if edge)
        path = Path(f"/proc/{int(pid)}/fd/{int(fd)}")
        kind = np.dtype(dtype)
    except (ValueError, TypeError):
        raise RunError("not a key of shared memory", [("found", key)]) from None
    try:
        own = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _unreachable(pid, error.strerror or "") from None
    try:
        if f"squall-{token}" not in str(Path(f"/proc/self/fd/{own}").readlink()):
            raise _unreachable(pid, "its descriptor is another file by now")
        num_bytes, size = kind.itemsize * int(np.prod(shape, dtype=np.int64)), os.fstat(own).st_size
        if size != num_bytes:
            raise RunError("shared memory of another size", [("found", f"{size:,} bytes for {num_bytes:,}")])
        if not num_bytes:
            return np.empty(shape, kind), None
        memory = mmap.mmap(own, num_bytes, mmap.MAP_SHARED, mmap.PROT_READ)
    finally:
        os.close(own)
    return np.frombuffer(memory, kind).reshape(shape), memory


def _unreachable(pid: str, why: str) -> RunError:
    return RunError(
        f"the data set in the memory of process {pid} cannot be reached",
        [
            ("found", why),
            ("rule", "the process that loaded it is alive, on this machine, of this user, in this container"),
        ],
    )


class Exchange(Protocol):
    """How the processes of one machine pass each other a few lines of text (`squall.cluster.world.World`)."""

    @property
    def local_rank(self) -> int:
        """Number of this process on its machine."""

    @property
    def local_size(self) -> int:
        """Processes on this machine."""

    def put(self, key: str, value: str) -> object:
        """Publishes a value to the other processes of this machine."""

    def get(self, key: str) -> str:
        """Waits for a value, up to its own deadline."""


def once_per_machine(load: Callable[[], Loaded], exchange: Exchange, name: str) -> Loaded:
    """Loads a set in the machine's first process and maps it in the others.

    Arguments:
        load: gives a frozen dataclass of arrays, strings, numbers, paths and tuples of these; called by local rank 0.
        exchange: between the processes of this machine.
        name: of the set, another one for each call: ``"train"``, ``"test"``.

    Returns:
        The set, equal everywhere, its arrays read-only mappings of the same memory (alone: as loaded).

    Raises:
        SquallError: as raised by `load`, the same in all processes; `RunError` in the others for any other exception.
    """
    if exchange.local_size == 1:
        return load()
    key = f"data/{name}"
    if exchange.local_rank:
        said = json.loads(exchange.get(key))
        if "error" in said:
            raise _error(said["error"])
        return _unpacked(said)  # type: ignore[no-any-return]
    return _load_and_publish(load, exchange, key)


def _load_and_publish(load: Callable[[], Loaded], exchange: Exchange, key: str) -> Loaded:
    handles: list[Handle] = []
    try:
        loaded = load()
        fields: dict[str, object] = {}
        said: dict[str, object] = {"kind": _name_of(type(loaded)), "fields": fields}
        for field in dataclasses.fields(loaded):  # type: ignore[arg-type]
            fields[field.name] = _packed(getattr(loaded, field.name), handles)
        memories: dict[str, mmap.mmap | None] = {}

        def own(array_key: str) -> npt.NDArray[Any]:
            array, memories[array_key] = _attach(array_key)
            return array

        shared: Loaded = _unpacked(said, own)
    except Exception as error:
        exchange.put(key, json.dumps({"error": _packed_error(error)}))
        for handle in handles:
            handle.close()
        raise
    for handle in handles:  # a descriptor lives as long as its array here
        weakref.finalize(memories[handle.key()] or shared, handle.close)
    exchange.put(key, json.dumps(said))
    return shared


def _packed(value: object, handles: list[Handle]) -> object:
    if isinstance(value, np.ndarray):
        handles.append(publish(value))
        return {"array": handles[-1].key()}
    if isinstance(value, tuple):
        return {"tuple": [_packed(part, handles) for part in value]}
    if isinstance(value, Path):
        return {"path": str(value)}
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be passed to the other processes")


def _plain(value: Any, attached: Callable[[str], Any] = attach) -> Any:
    if not isinstance(value, dict):
        return value
    if "tuple" in value:
        return tuple(_plain(part, attached) for part in value["tuple"])
    return Path(value["path"]) if "path" in value else attached(value["array"])


def _unpacked(said: dict[str, Any], attached: Callable[[str], Any] = attach) -> Any:
    """Builds the set from what was said about it."""
    module, _, name = said["kind"].partition(":")
    kind = getattr(importlib.import_module(module), name)
    return kind(**{field: _plain(value, attached) for field, value in said["fields"].items()})


def _name_of(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _packed_error(error: Exception) -> object:
    if isinstance(error, SquallError) and type(error).__module__ == errors.__name__:
        return {"kind": type(error).__name__, "arguments": [_packed(part, []) for part in error.__reduce__()[1]]}
    text = f"{type(error).__name__}: {error}"
    rows = {"tuple": [{"tuple": ["found", text]}]}
    return {"kind": "RunError", "arguments": ["the first process of this machine could not load the data", rows]}


def _error(said: dict[str, Any]) -> SquallError:
    error: SquallError = getattr(errors, said["kind"])(*(_plain(part) for part in said["arguments"]))
    return error
