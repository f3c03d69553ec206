"""Tensors between roles of one machine: windows of memory that the other process maps, so that nothing is copied.

A window is an anonymous memory file (`memfd_create`) of the process that asked for it. It has no name, so nothing is
left behind however processes end, and it is not bound by the size of /dev/shm. Another process maps the same pages
through ``/proc/PID/fd/N``; what it has to know for that travels as a small plain value::

    caller                                            callee
    gradient = window(n, torch.float32)
    place = describe(gradient)
            -- place ------------------------------->
                                                      gradient = attach(place)      # the same pages
                                                      into = attach(other_place); into.copy_(weights)

A random word in the file's name tells a window from all others, so a process number or a descriptor that is used again
is noticed. A window ends when no tensor of its owner refers to it any more; the pages, when no mapping is left either.

(`multiprocessing.shared_memory` would not do: on Python 3.11 any process that attaches deletes the owner's segment when
it ends, and a killed group leaves the file.)
"""

from __future__ import annotations

import mmap
import os
import secrets
import threading
import time
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from squall.engine import machine
from squall.errors import InputError, RunError

_SPARE_BYTES = 128 << 20
"""Left free: what the kernel says is available is an estimate, and it kills where that was wrong."""
_MOST_MAPPED = 1024
"""Windows of others that stay mapped for their next use."""
_LOOK_S = 1.0
"""After which `attach` looks again whether they have ended: a link each is read for that."""


class GoneError(RunError):
    """A window of another process that is no more: its owner died, or gave it up."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: a run of elements in a window.

    Attributes:
        node: machine, process numbers and network as the owner sees them; equal where a window can be mapped.
        pid, fd: the owner and its descriptor.
        word: the window's own.
        offset: of the first element, bytes.
        num_elements: of the run.
        dtype: its elements' type.
    """

    node: str
    pid: int
    fd: int
    word: str
    offset: int
    num_elements: int
    dtype: torch.dtype


@dataclass(frozen=True)
class _Window:
    fd: int
    word: str


_lock = threading.RLock()  # a window may end, by the garbage collector, in a thread that holds it
_windows: dict[int, _Window] = {}  # by address
_mapped: OrderedDict[tuple[int, int, str], torch.Tensor] = OrderedDict()
_looked = 0.0


def window(num_elements: int, dtype: torch.dtype) -> torch.Tensor:
    """A vector of zeros in a window of its own, which begins with a page; its memory is reserved at once.

    It is no more than that: `describe` finds it, and any part of it, by its address.

    Raises:
        InputError: there is too little memory.
    """
    release()
    num_bytes = max(num_elements * dtype.itemsize, 1)
    free = machine.free_memory()
    if num_bytes + _SPARE_BYTES > free:
        raise _too_little(num_bytes, f"{_size(free)} are free on this machine or in this container")
    word = secrets.token_hex(8)
    fd = os.memfd_create(_name(word), os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(fd, 0, num_bytes)  # now, and not as a SIGBUS later
        memory = mmap.mmap(fd, num_bytes)
    except OSError as error:
        os.close(fd)
        raise _too_little(num_bytes, error.strerror or str(error)) from None
    array = np.frombuffer(memory, np.uint8)  # lives as long as a tensor refers to it, and ends before the mapping does
    address, made = array.ctypes.data, _Window(fd, word)
    with _lock:
        _windows[address] = made
    weakref.finalize(array, _end, address, made).atexit = False
    return torch.from_numpy(array)[: num_elements * dtype.itemsize].view(dtype)


def describe(tensor: torch.Tensor) -> Place | None:
    """What another process needs to map a tensor; None unless it is contiguous and in a window of this process."""
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        return None
    with _lock:
        found = _windows.get(tensor.untyped_storage().data_ptr())
    if found is None:
        return None
    offset = int(tensor.storage_offset()) * tensor.element_size()
    return Place(node(), os.getpid(), found.fd, found.word, offset, tensor.numel(), tensor.dtype)


def attach(place: Place) -> torch.Tensor:
    """The tensor at a place, as a vector; what is written into it, its owner sees.

    A window stays mapped for its next use, until its end is noticed: by the next `window` or `release`, or by the first
    `attach` of any window after `_LOOK_S`.

    Raises:
        GoneError: the owner died, or no tensor of it refers to the window any more.
        RunError: it is on another machine, or in another container.
    """
    if place.node != node():
        raise RunError(
            f"the memory of process {place.pid} cannot be reached from here",
            [
                ("found", f"it is on {place.node}, this is {node()}"),
                ("rule", "one machine, one container, one network"),
            ],
        )
    key = (place.pid, place.fd, place.word)
    with _lock:
        whole = _mapped.get(key)
        if whole is None or not _alive(key) or time.monotonic() > _looked + _LOOK_S:
            release()
            whole = _mapped.get(key)
        if whole is None:
            whole = _mapped[key] = _map(key)
            if len(_mapped) > _MOST_MAPPED:
                _mapped.popitem(last=False)
        _mapped.move_to_end(key)
    return whole[place.offset : place.offset + place.num_elements * place.dtype.itemsize].view(place.dtype)


def release() -> None:
    """Unmaps the windows of others that have ended."""
    global _looked
    with _lock:
        _looked = time.monotonic()
        for key in [key for key in _mapped if not _alive(key)]:
            del _mapped[key]


@cache
def node() -> str:
    """This machine, or container, or network namespace; the same text for all processes that can share windows.

    A network of its own makes a machine of its own: its processes may share this one's kernel, but whoever put them
    there meant them to be apart.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    spaces = [str(Path(f"/proc/self/ns/{kind}").stat().st_ino) for kind in ("pid", "net")]
    return "/".join([boot, *spaces])


def _map(key: tuple[int, int, str]) -> torch.Tensor:
    pid, fd, word = key
    try:
        own = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise GoneError(f"process {pid} died, or gave up the memory that was asked for") from None
    except OSError as error:
        raise RunError(
            f"the memory of process {pid} cannot be reached",
            [("found", error.strerror or str(error)), ("rule", "processes of one user")],
        ) from None
    try:
        path = f"/proc/self/fd/{own}"
        if _name(word) not in str(Path(path).readlink()):
            raise GoneError(f"process {pid} gave up the memory that was asked for, or its number is used again")
        return torch.from_file(path, shared=True, size=os.fstat(own).st_size, dtype=torch.uint8)
    finally:
        os.close(own)


def _alive(key: tuple[int, int, str]) -> bool:
    pid, fd, word = key
    try:
        return _name(word) in os.readlink(f"/proc/{pid}/fd/{fd}")  # noqa: PTH115  every call's way leads here
    except OSError:
        return False


def _end(address: int, ended: _Window) -> None:
    with _lock:
        if _windows.get(address) is ended:
            del _windows[address]
    os.close(ended.fd)


def _name(word: str) -> str:
    return f"squall-{word}"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:,.1f} MB"


def _too_little(num_bytes: int, found: str) -> InputError:
    return InputError(
        f"no shared memory for a vector of {_size(num_bytes)}",
        [
            ("found", found),
            ("rule", "each shard and each replica keeps its vectors in memory that is taken when it starts"),
            ("to do", "fewer replicas on this machine, or more memory for it (a container: its memory limit)"),
        ],
    )
