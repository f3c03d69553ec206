"""Keeps the user's files: before a rank writes over one, moves it or removes it, a copy is put aside.

A script under observation saves as it always does, into the place where the real training saves: cut epochs would leave
their weights over the real ones, and the next trial would find the last one's checkpoints and go on from them. Python
tells before a file is opened, renamed or removed (audit hooks, PEP 578); writers in C++ and Rust are asked at their
door. What was there is copied, once, whoever of the ranks comes first; what was not there is noted. After the trial the
owner puts all back (`squall.verify.restoring`).

Not kept: temporary files, caches of the home folder, compiled modules, and the trial's own folders.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

KEPT = "kept"
"""Folder in the job's folder: for each file that was touched a note, and a copy where it was there before."""

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_WAIT_S = 60.0  # for another rank's copy
_POLL_S = 0.01


class Keeper:
    """Puts files aside before they are changed."""

    def __init__(self, folder: Path, own: Sequence[Path]) -> None:
        self.folder = folder / KEPT
        self.folder.mkdir(exist_ok=True)
        elsewhere = [Path(tempfile.gettempdir()), Path.home() / ".cache", Path("/dev"), Path("/proc"), Path("/sys")]
        self._own = tuple(f"{os.path.realpath(place)}{os.sep}" for place in (folder, *own))
        self._elsewhere = tuple(f"{os.path.realpath(place)}{os.sep}" for place in elsewhere)
        self._here = f"{os.path.realpath(Path.cwd())}{os.sep}"
        self._known: set[str] = set()
        self._busy = threading.local()

    def install(self) -> None:
        """From now on, for as long as the process lives."""
        sys.addaudithook(self._hook)
        self._ask_at_doors()

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.truncate", "os.mkdir") or getattr(
            self._busy, "on", False
        ):
            return
        self._busy.on = True
        try:
            if event == "open":
                path, _, flags = arguments
                if isinstance(flags, int) and flags & _WRITES:
                    self.keep(path)
            elif event == "os.mkdir":
                self.keep(arguments[0], folder=True)
            else:
                for path in arguments[: 2 if event == "os.rename" else 1]:
                    self.keep(path)
        except (OSError, ValueError, TypeError):  # the script's own call says what is wrong
            pass
        finally:
            self._busy.on = False

    def keep(self, path: Any, *, folder: bool = False) -> None:
        """Puts a file aside, if that has not been done; a folder that will be made is noted."""
        if isinstance(path, int) or path is None:
            return
        real = os.path.realpath(os.fsdecode(path))
        if real in self._known:
            return
        self._known.add(real)
        if real.startswith(self._own) or f"{os.sep}__pycache__{os.sep}" in real:
            return
        if real.startswith(self._elsewhere) and not real.startswith(self._here):
            return
        note = self.folder / hashlib.sha256(real.encode("utf-8", "surrogateescape")).hexdigest()
        try:
            there = os.lstat(real)
        except FileNotFoundError:
            there = None
        if there is not None and not stat.S_ISREG(there.st_mode):
            return  # folders stay, pipes and devices are no files
        if there is None and not real.startswith(self._here):
            return  # new files elsewhere are somebody's caches
        try:
            os.close(os.open(f"{note}.claimed", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            self._wait(Path(f"{note}.json"))
            return
        if there is not None:
            shutil.copy2(real, f"{note}.copy")
        told = {"path": real, "was": None if there is None else "file", "folder": folder, "order": time.time_ns()}
        Path(f"{note}.new").write_text(json.dumps(told), encoding="utf-8")
        Path(f"{note}.new").replace(f"{note}.json")

    def _wait(self, note: Path) -> None:
        """Until another rank has made its copy."""
        end = time.monotonic() + _WAIT_S
        while not note.exists() and time.monotonic() < end:
            time.sleep(_POLL_S)

    def _ask_at_doors(self) -> None:
        """Writers that Python does not hear of: torch's zip files, safetensors."""
        import safetensors.numpy
        import safetensors.torch
        import torch

        torch.save = self._asked(torch.save, 1)
        for module in (safetensors.torch, safetensors.numpy):
            module.save_file = self._asked(module.save_file, 1)  # type: ignore[attr-defined]

    def _asked(self, call: Any, position: int) -> Any:
        @functools.wraps(call)
        def asked(*args: Any, **named: Any) -> Any:
            given = args[position] if len(args) > position else named.get("f", named.get("filename"))
            if isinstance(given, str | os.PathLike):
                self.keep(given)
            return call(*args, **named)

        return asked
