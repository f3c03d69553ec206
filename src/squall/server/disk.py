"""Shards' snapshots on disk: a file each, and a manifest for each set that is whole.

    server/shard-0-000003.safetensors      weights, the rule's state, what was applied; hashed
    server/shard-1-000003.safetensors
    server/000003.json                     set 3 is whole: every shard has saved it
    server/pairs-0-000003.safetensors      of batch optimisation: what joined its history since set 2

A shard writes beside its work, into a file of another name which it renames when it is on the disk; it comes back with
its newest whole file. A run goes on from the newest set that is whole. On a cluster the folder is one that all of its
machines see: the driver leaves a word in it, and a shard that does not find it there says so before it begins. A shard
of an earlier session that lives on, cut off or stopped, finds another word before it renames, and changes nothing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import socket
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from squall.errors import InputError, RunError
from squall.run.folder import write_json
from squall.server.shard import Snapshot

FOLDER = "server"
_HEAD = 64  # hex digits of the hash that a file begins with
_WORD = ".session"
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)  # and no full disk: that may pass


class OnDisk:
    """Snapshots in a run's folder.

    Arguments:
        folder: `FOLDER` in it; made by `begin`.
        keep: the newest so many of each shard stay, besides those of sets that are whole; None: all, until somebody
            says `forget`.
    """

    def __init__(self, folder: Path, keep: int | None = 2) -> None:
        self._folder, self._keep, self._word = folder.absolute(), max(keep, 2) if keep is not None else None, ""
        self._name = "shard"

    def beside(self) -> OnDisk:
        """Others of the same shards and session, all of which are kept."""
        found = OnDisk(self._folder, None)
        found._word, found._name = self._word, "pairs"
        return found

    def begin(self, first: Sequence[Snapshot]) -> None:
        """Writes the state before the first push of all shards, as set 0; an older beginning's sets go before it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._leave_word()
        for pattern in (
            "[0-9]*.json",
            "shard-*.safetensors",
            "pairs-*.safetensors",
        ):  # manifests first: none without its files
            for path in self._folder.glob(pattern):
                path.unlink(missing_ok=True)
        for shard, snapshot in enumerate(first):
            self.save(shard, snapshot)

    def newest(self, shard: int) -> Snapshot:
        """The newest whole one of a shard.

        Raises:
            InputError: this machine does not see the run's folder, or may not write there.
            RunError: none is.
        """
        self._look_for_word()
        passed = []
        for number in reversed(self.numbers(shard)):
            try:
                return _read(self._path(shard, number), number)
            except (OSError, ValueError, SafetensorError) as error:
                passed.append((f"snapshot {number}", str(error)))
        raise RunError(f"no snapshot of shard {shard} is whole in {self._folder}", passed)

    def numbers(self, shard: int) -> list[int]:
        """Those that there are, ascending; whole or not."""
        return sorted(
            int(path.stem.rpartition("-")[2]) for path in self._folder.glob(f"{self._name}-{shard}-*.safetensors")
        )

    def read(self, shard: int, number: int) -> Snapshot:
        """One of a shard.

        Raises:
            InputError: as of `newest`.
            RunError: it is not there, or not whole.
        """
        self._look_for_word()
        path = self._path(shard, number)
        try:
            return _read(path, number)
        except (OSError, ValueError, SafetensorError) as error:
            raise RunError(f"{path.name} cannot be read", [("found", str(error))]) from error

    def forget(self, shard: int, below: int = 0, above: float = inf) -> None:
        """Removes those whose numbers are smaller, or larger."""
        for number in self.numbers(shard):
            if not below <= number <= above and self._is_ours():
                self._path(shard, number).unlink(missing_ok=True)

    def save(self, shard: int, snapshot: Snapshot) -> int:
        """Keeps one, whole or not at all; older ones go, unless they belong to a set that is whole. Returns its bytes.

        Raises:
            RunError: the disk does not take it, or another session writes there.
        """
        path = self._path(shard, snapshot.number)
        facts = {"count": snapshot.count, "received": snapshot.received}
        body = save(
            {key: tensor.contiguous() for key, tensor in snapshot.tensors.items()}, {"shard": json.dumps(facts)}
        )
        temporary = self._temporary(path)
        try:
            with temporary.open("wb") as file:
                file.write(hashlib.sha256(body).hexdigest().encode())
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            if not self._is_ours():
                raise OSError(errno.ESTALE, "another session has begun")
            temporary.replace(path)
            _sync(self._folder)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            found = f"{error.strerror or error}: {self._folder}"
            raise RunError(f"shard {shard} cannot save its snapshot", [("found", found)]) from error
        whole = {int(path.stem) for path in self._folder.glob("[0-9]*.json")}
        for number in self.numbers(shard)[: -self._keep] if self._keep is not None else ():
            if number not in whole:  # another shard may have failed to save since
                self._path(shard, number).unlink(missing_ok=True)
        return len(body) + _HEAD

    def note_whole(self, number: int, values: dict[str, Any]) -> None:
        """Notes that all shards have saved a set, with what else belongs to it."""
        write_json(self._folder / f"{number:06}.json", values)
        for path in sorted(self._folder.glob("[0-9]*.json"))[: -(self._keep or 2)]:
            path.unlink(missing_ok=True)
            for shard in self._folder.glob(f"shard-*-{path.stem}.safetensors"):
                shard.unlink(missing_ok=True)

    def go_back(self, shards: int) -> tuple[int, dict[str, Any]] | None:
        """The newest whole set, as number and values; what is newer is removed. None where there is none.

        Pairs belong to a set: where one of those that are there cannot be read, an older set's may do.
        """
        pairs = self.beside()
        for path in sorted(self._folder.glob("[0-9]*.json"), reverse=True):
            number = int(path.stem)
            try:
                values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
                for shard in range(shards):
                    _read(self._path(shard, number), number)
                    for other in pairs.numbers(shard):
                        if other <= number:
                            _read(pairs._path(shard, other), other)
            except (OSError, ValueError, SafetensorError):
                continue
            self._leave_word()
            pairs = self.beside()
            for shard in range(shards):
                for kind in (self, pairs):
                    kind.forget(shard, above=number)
            return number, values
        return None

    def _leave_word(self) -> None:
        self._word = secrets.token_hex(8)
        (self._folder / _WORD).write_text(self._word)
        for path in self._folder.glob(".*.safetensors.*.tmp"):  # of those who were killed while they wrote
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def _is_ours(self) -> bool:
        return not self._word or (self._folder / _WORD).read_text() == self._word

    def _look_for_word(self) -> None:
        if not self._word:
            return  # of nobody's session
        here = socket.gethostname()
        try:
            found = "" if self._is_ours() else "another run's"
        except OSError as error:
            found = error.strerror or str(error)
        if found:
            raise InputError(
                "a shard does not see the run's folder",
                [
                    ("found", f"{self._folder} on {here}: {found}"),
                    ("rule", "shards write their snapshots there: all machines of a cluster see one folder"),
                    (
                        "to do",
                        "--out with a folder of a shared file system; or one shard (shards=1), beside the driver",
                    ),
                ],
            )
        try:
            tempfile.TemporaryFile(dir=self._folder).close()
        except OSError as error:
            if error.errno in _FORBIDDEN:
                raise InputError(
                    "a shard may not write to the run's folder",
                    [
                        ("found", f"{self._folder} on {here}: {error.strerror}, as user {os.geteuid()}"),
                        ("rule", "shards write their snapshots there"),
                        ("to do", "run Ray as the same user on all machines, or give that one the right to write"),
                    ],
                ) from error

    def _path(self, shard: int, number: int) -> Path:
        return self._folder / f"{self._name}-{shard}-{number:06}.safetensors"

    def _temporary(self, path: Path) -> Path:
        return path.with_name(f".{path.name}.{self._word}.tmp")


def _read(path: Path, number: int) -> Snapshot:
    content = path.read_bytes()
    head, body = content[:_HEAD], content[_HEAD:]
    if hashlib.sha256(body).hexdigest().encode() != head:
        raise ValueError(f"{path.name} is damaged")
    facts = _facts(body)
    return Snapshot(number, load(body), int(facts["count"]), dict(facts["received"]))


def _facts(body: bytes) -> dict[str, Any]:
    """What stands in the header of a safetensors file under "shard"."""
    length = int.from_bytes(body[:8], "little")
    found: dict[str, Any] = json.loads(json.loads(body[8 : 8 + length])["__metadata__"]["shard"])
    return found


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
