"""The background process that writes checkpoints: copies what a rank left in shared memory to disk, and hashes it.

A thread would fight training for the interpreter; writing in the rank would stop it for as long as the disk takes. This
process is spawned once, when a run begins, from this file alone and without torch. It reads orders, a line of JSON
each, and answers each with a line::

    rank          copy state into shared memory    order -->   train on ...                       <-- answer
    rank 1's writer                  write, sync rank-1.safetensors    say so in rank-1.json
    rank 0's writer                  write, sync rank-0.safetensors    wait for all, manifest, sync, rename, sync

Until the rename the folder has a name that nobody looks for. A death at any moment, of anybody, leaves either the old
checkpoints alone or the old ones and a whole new one. Whoever cannot do its part says why in a file beside the folder,
`...-failed`; a rank says it for its writer that died. Everybody who waits looks there. Hashing runs beside writing:
either would halve the speed of the other.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import mmap
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

_CHUNK = 4 << 20
_POLL_S = 0.01
_PATIENCE_S = 600.0
_PR_SET_PDEATHSIG = 1
_GONE = ".gone-"


def main(fd: int, parent: int) -> None:
    """Follows orders until there are no more.

    Arguments:
        fd: of the shared memory.
        parent: the rank; this process does not outlive it.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        return
    memory = Memory(fd)
    for line in sys.stdin:
        order = json.loads(line)
        if order is None:  # no more; the pipe's end would be seen only when loader processes have closed it too
            return
        started = time.monotonic()
        try:
            answer = follow(order, memory)
        except Exception as error:
            answer = {"error": _reason(error)}
        answer |= {"step": order["step"], "seconds": time.monotonic() - started}
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()
        if "error" not in answer:
            tidy(order)


class Memory:
    """The shared memory, mapped once: faulting its pages in again would cost as much as writing them.

    Arguments:
        fd: of the memory, which the rank makes larger when it needs to.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._map: mmap.mmap | None = None

    def view(self, size: int) -> memoryview:
        """Its first bytes."""
        if self._map is None or len(self._map) < size:
            if self._map is not None:
                self._map.close()
            whole = os.fstat(self._fd).st_size
            self._map = mmap.mmap(self._fd, whole, mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ)
        return memoryview(self._map)[:size]


def follow(order: dict[str, Any], memory: Memory) -> dict[str, Any]:
    """Writes one rank's file; rank 0's writer also makes the checkpoint of it.

    Arguments:
        order: folder (where it is made), name (of the rank's file, without its ending), header (of the file), bytes
            (of shared memory); for rank 0 also parts (names of all ranks' files), final (the folder's name when it is
            whole), body (of the manifest), sync (files to sync before, with the bytes that they must have), remove
            (older checkpoints).
    """
    folder = Path(order["folder"])
    part = folder / f"{order['name']}.safetensors"
    try:
        if "final" in order:
            _clear(folder)
            folder.mkdir(parents=True)
        else:
            _wait_for(folder)
        said = _write_part(part, order["header"].encode(), memory, order["bytes"])
        _publish(folder / f"{order['name']}.json", json.dumps(said))
        return _complete(folder, order) if "final" in order else {}
    except BaseException as error:
        if "final" in order:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                part.unlink()  # a full disk has room for a word then
        if not isinstance(error, FileNotFoundError):  # the folder is gone: rank 0's writer has given up already
            say_failed(folder, f"{_reason(error)} ({order['name']})")
        raise


def say_failed(folder: Path, why: str) -> None:
    """Tells the writers of all ranks that this checkpoint will not be whole; the first word stays.

    Arguments:
        folder: where it is made.
        why: and whose part it was; a disk that is full to the last byte holds the name of the file only.
    """
    mark = _failed(folder)
    if mark.exists():
        return
    try:
        _publish(mark, why)
    except OSError:
        with contextlib.suppress(OSError):
            mark.touch()


def _failed(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-failed")


def _check_not_failed(folder: Path) -> None:
    """Raises what another rank's writer, or its rank, has said."""
    with contextlib.suppress(FileNotFoundError):
        raise OSError(0, _failed(folder).read_text(encoding="utf-8") or "another rank could not write its part")


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return f"{type(error).__name__}: {error}"


def _clear(folder: Path) -> None:
    """Takes away what this session's earlier orders have left: a full disk would stay full of it."""
    session = folder.name.rpartition(".")[2]
    for path in folder.parent.glob(f".step-*.{session}*"):
        if path != _failed(folder):  # of this order, by a rank whose writer died at once
            shutil.rmtree(path, ignore_errors=True)
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _wait_for(folder: Path) -> None:
    """Returns when rank 0's writer has made the folder.

    Raises:
        OSError: a rank could not do its part, or none has made the folder in time.
    """
    end = time.monotonic() + _PATIENCE_S
    while not folder.is_dir():
        _check_not_failed(folder)
        if time.monotonic() > end:
            raise TimeoutError(0, f"rank 0 made no folder for it within {_PATIENCE_S:g} s")
        time.sleep(_POLL_S)


def _write_part(path: Path, header: bytes, memory: Memory, size: int) -> dict[str, Any]:
    """Writes a safetensors file: the length of the header, the header, the bytes."""
    head = len(header).to_bytes(8, "little") + header
    digest = hashlib.sha256(head)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        _write_all(file, memoryview(head))
        if size:
            with memory.view(size) as data:
                hashing = threading.Thread(target=_hash, args=(digest, data))
                hashing.start()
                try:
                    for start in range(0, size, _CHUNK):
                        with data[start : min(start + _CHUNK, size)] as chunk:
                            _write_all(file, chunk)
                    os.fsync(file)
                finally:
                    hashing.join()
        else:
            os.fsync(file)
    finally:
        os.close(file)
    return {"bytes": len(head) + size, "sha256": digest.hexdigest()}


def _hash(digest: Any, data: memoryview) -> None:
    for start in range(0, len(data), _CHUNK):
        with data[start : start + _CHUNK] as chunk:
            digest.update(chunk)


def _write_all(file: int, data: memoryview) -> None:
    while data:
        written = os.write(file, data)
        data = data[written:]


def _complete(folder: Path, order: dict[str, Any]) -> dict[str, Any]:
    """Waits for all parts, writes the manifest, gives the folder its name, removes what is not kept."""
    files = [_part_of(folder, name) for name in order["parts"]]
    for path, least in order["sync"]:
        if Path(path).stat().st_size < least:  # a full disk: the rank holds the rest back in memory
            raise OSError(0, f"{Path(path).name} could not be written")
        _sync(Path(path))
    body = {**order["body"], "files": files}
    text = manifest_text(body).encode()
    manifest = os.open(folder / order["manifest"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        _write_all(manifest, memoryview(text))
        os.fsync(manifest)
    finally:
        os.close(manifest)
    for name in order["parts"]:
        (folder / f"{name}.json").unlink(missing_ok=True)
    _sync(folder)
    folder.rename(folder.with_name(order["final"]))
    _sync(folder.parent)
    return {"bytes": len(text) + sum(file["bytes"] for file in files)}


def tidy(order: dict[str, Any]) -> None:
    """Removes older checkpoints once the new one is whole: renamed first, so that no name is ever half of one."""
    folder = Path(order["folder"]).parent
    for name in order.get("remove", ()):
        with contextlib.suppress(OSError):
            (folder / name).rename(folder / f"{_GONE}{name}-{os.getpid()}")
    for gone in folder.glob(f"{_GONE}*") if "final" in order else ():
        shutil.rmtree(gone, ignore_errors=True)


def _part_of(folder: Path, name: str) -> dict[str, Any]:
    """What a rank's writer said of its file, as soon as it has.

    Raises:
        OSError: a rank could not do its part, or says nothing in time.
    """
    end = time.monotonic() + _PATIENCE_S
    while True:
        with contextlib.suppress(FileNotFoundError):
            return {"name": f"{name}.safetensors", **json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))}
        _check_not_failed(folder)
        if time.monotonic() > end:
            raise TimeoutError(0, f"not written within {_PATIENCE_S:g} s ({name})")
        time.sleep(_POLL_S)


def manifest_text(body: dict[str, Any]) -> str:
    """The text of a manifest: its body, and before it the hash of the body's text."""
    inside = json.dumps(body, separators=(",", ":"), allow_nan=False)
    return f'{{"sha256":"{hashlib.sha256(inside.encode()).hexdigest()}",\n"body":{inside}}}\n'


def _publish(path: Path, text: str) -> None:
    """Writes a small file whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    """Brings a file, or the names in a folder, to the disk."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
