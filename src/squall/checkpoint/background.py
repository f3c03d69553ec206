"""A rank's side of its background writer: the shared memory between them, orders to it, and its answers.

See `writer.py` for the other side. The process is spawned when the run begins, so that no save pays for its start.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import select
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from squall.checkpoint import layout
from squall.checkpoint.writer import say_failed

_NOT_FOR_IT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals to a whole process group: the rank decides when to leave."""

_TIDIES_S = 10.0
_WRITER = Path(__file__).with_name("writer.py")

_PIPE = 1 << 20
"""Bytes: an order holds a manifest, often more than a pipe's 64 KB; the rank must not wait until it is read."""


class Background:
    """The writer of this rank; none of its methods waits for the disk but `wait` and `close`."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("squall-checkpoint", os.MFD_CLOEXEC)
        self._memory: mmap.mmap | None = None
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._process: subprocess.Popen[bytes] | None = None
        self._said = b""
        self._under_way: Mapping[str, Any] = {}
        self.busy = False
        self._spawn()

    def copy(
        self,
        placed: list[layout.Entry],
        tensors: Mapping[str, torch.Tensor],
        slices: Mapping[str, tuple[int, int]],
    ) -> tuple[str, int]:
        """Copies slices of the state into the shared memory.

        Arguments:
            placed: the places of all tensors.
            tensors: by name, on any device.
            slices: start and stop of this rank's part of each dtype's vector.

        Returns:
            The header of the safetensors file that the bytes make up, and their number.
        """
        size = layout.num_bytes(slices)
        self._grow(size)
        header: dict[str, Any] = {}
        for dtype, offset, view in layout.views(self._bytes[:size], slices):
            layout.copy_slice([e for e in placed if e.dtype == dtype], tensors, slices[dtype][0], view)
            header[dtype] = {
                "dtype": dtype,
                "shape": [len(view)],
                "data_offsets": [offset, offset + view.numel() * view.element_size()],
            }
        return _header(header, size), size

    def order(self, order: Mapping[str, Any]) -> None:
        """Hands an order over; the memory is the writer's until it has answered."""
        if self._process is None or self._process.poll() is not None:
            self._spawn()
        assert self._process is not None
        assert self._process.stdin is not None
        self.busy, self._under_way = True, order
        with suppress(BrokenPipeError):  # it has just died: `answer` says so
            self._process.stdin.write(f"{json.dumps(order)}\n".encode())
            self._process.stdin.flush()

    def answer(self, timeout_s: float = 0.0) -> dict[str, Any] | None:
        """The writer's answer to the order under way, if it has come."""
        if not self.busy or self._process is None or self._process.stdout is None:
            return None
        out = self._process.stdout.fileno()
        while b"\n" not in self._said:
            if not select.select([out], [], [], timeout_s)[0]:
                return None
            found = os.read(out, 1 << 16)
            if not found:
                return self.give_up("the process that writes checkpoints died")
            self._said += found
        line, _, self._said = self._said.partition(b"\n")
        self.busy = False
        answer: dict[str, Any] = json.loads(line)
        return answer

    def wait(self, timeout_s: float) -> dict[str, Any] | None:
        """Waits for the answer to the order under way; None if there is none, or it does not come in time."""
        end = time.monotonic() + timeout_s
        while self.busy:
            answer = self.answer(max(end - time.monotonic(), 0.0))
            if answer is not None or time.monotonic() >= end:
                return answer
        return None

    def give_up(self, why: str) -> dict[str, Any]:
        """Ends the order under way, and says so to the other ranks' writers, which may wait for this one."""
        self._end_process()
        self.busy = False
        say_failed(Path(self._under_way["folder"]), f"{why} ({self._under_way['name']})")
        return {"error": why, "step": self._under_way["step"], "seconds": 0.0}

    def close(self) -> None:
        """Ends the process; what it was writing is left half done, under a name that nobody looks for."""
        self._end_process()
        self._bytes = torch.empty(0, dtype=torch.uint8)
        if self._memory is not None:
            with suppress(BufferError):  # a view of the user's own; it goes with it
                self._memory.close()
            self._memory = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        if self.busy:
            process.kill()
        with suppress(OSError):
            process.stdin.write(b"null\n")
            process.stdin.close()
        for _ in range(2):
            with suppress(subprocess.TimeoutExpired):
                process.wait(_TIDIES_S)  # it may be removing an older checkpoint; killed, it may hang in a dead disk
            process.kill()
        process.stdout.close()

    def _spawn(self) -> None:
        self._end_process()
        self._said = b""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_FOR_IT)  # which it inherits, and keeps
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_WRITER), str(self._fd), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(self._fd,),
                cwd="/",
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        assert self._process.stdin is not None
        with suppress(OSError):
            fcntl.fcntl(self._process.stdin, fcntl.F_SETPIPE_SZ, _PIPE)

    def _grow(self, size: int) -> None:
        if size <= len(self._bytes):
            return
        self._bytes = torch.empty(0, dtype=torch.uint8)
        if self._memory is not None:
            self._memory.close()
        os.ftruncate(self._fd, size)
        self._memory = mmap.mmap(self._fd, size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            self._bytes = torch.frombuffer(self._memory, dtype=torch.uint8)


def _header(tensors: Mapping[str, Any], size: int) -> str:
    """Of a safetensors file; its length makes the data begin at a multiple of 64 bytes."""
    gaps: dict[str, Any] = {}
    end = 0
    for name, held in tensors.items():
        start, stop = held["data_offsets"]
        if start > end:  # the format allows no bytes that belong to nobody
            gaps[f"pad-{name}"] = {"dtype": "U8", "shape": [start - end], "data_offsets": [end, start]}
        end = stop
    if size > end:
        gaps["pad"] = {"dtype": "U8", "shape": [size - end], "data_offsets": [end, size]}
    text = json.dumps({**tensors, **gaps}, separators=(",", ":"))
    return text + " " * (-(len(text) + 8) % layout.ALIGN)
