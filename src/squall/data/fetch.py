"""Gets public sets over lines that break.

A file is written to NAME.part and takes its own name, atomically, only when its SHA-256 sum is right. A line that is
cut or that stalls is taken up again where it ended (HTTP Range, RFC 9110 section 14); a server that knows no ranges
starts over. Wrong bytes are removed and reported with both sums. Only the standard library is used; redirects and
proxies are urllib's.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from squall.data.audit import Audit, check
from squall.data.catalogue import CATALOGUE, PublicSet, RemoteFile, find
from squall.errors import InputError, RunError
from squall.units import count

__all__ = ["CATALOGUE", "Audit", "check", "fetch"]

Progress = Callable[[str, int, int], None]

_CHUNK = 1 << 18
_ATTEMPTS = 5  # failures in a row, each with less than a hundredth of the file gained


class _LineError(Exception):
    """A failure that another attempt may mend; `from_start`: only one that asks for the whole file."""

    def __init__(self, message: str, *, from_start: bool = False) -> None:
        super().__init__(message)
        self.from_start = from_start


def fetch(
    name: str,
    folder: Path,
    *,
    base_url: str | None = None,
    progress: Progress | None = None,
    timeout: float = 30.0,
    pause: float = 1.0,
) -> list[Path]:
    """Gets a public set into `folder`; files that are there and right are left alone.

    Arguments:
        name: one of `CATALOGUE`.
        folder: the set's own folder, `<data folder>/<name>`; made if it is not there.
        base_url: another place that offers the same files.
        progress: is told (file, bytes there, bytes in all) after each piece.
        timeout: seconds without any byte after which a line counts as stalled.
        pause: seconds before the second attempt; doubled for each further one in a row.

    Returns:
        The files of the set.

    Raises:
        InputError: no such set, or the folder cannot be written.
        RunError: the line, the server or the bytes are bad; a part that was received stays for the next fetch.
    """
    public = find(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if public.members:
            return _fetch_archive(public, folder, base_url or public.base_url, progress, timeout, pause)
        return [
            _fetch_file(file, folder, (base_url or public.base_url) + file.name, progress, timeout, pause)
            for file in public.files
        ]
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written",
            [("found", error.strerror or str(error)), ("to do", "make room or give another folder: --data DIR")],
        ) from error


def _fetch_archive(
    public: PublicSet, folder: Path, base_url: str, progress: Progress | None, timeout: float, pause: float
) -> list[Path]:
    """Gets an archive and takes the wanted files out of it, each checked; the archive is not kept."""
    paths = [folder / member for member in public.members]
    if all(_is_right(path, sha256) for path, sha256 in zip(paths, public.members.values(), strict=True)):
        return paths
    (file,) = public.files
    archive = _fetch_file(file, folder, base_url + file.name, progress, timeout, pause)
    with tarfile.open(archive, "r:*") as tar:
        for entry in tar:
            member = Path(entry.name).name
            source = tar.extractfile(entry) if member in public.members and entry.isfile() else None
            if source is not None:
                # read as bytes and written under our own name: nothing in an archive chooses where it lands
                part = folder / f"{member}.part"
                with source, part.open("wb") as out:
                    while chunk := source.read(_CHUNK):
                        out.write(chunk)
                part.replace(folder / member)
    for path, sha256 in zip(paths, public.members.values(), strict=True):
        if not _is_right(path, sha256):
            raise RunError(f"{path} did not come out of {file.name} as it should", [("expected", f"sha256 {sha256}")])
    archive.unlink()
    return paths


def _fetch_file(
    file: RemoteFile, folder: Path, url: str, progress: Progress | None, timeout: float, pause: float
) -> Path:
    path, part = folder / file.name, folder / f"{file.name}.part"
    if _is_right(path, file.sha256):
        return path
    tell = progress or (lambda _name, _done, _size: None)
    with _alone(part):
        for has_old_part in (part.stat().st_size > 0, False):
            _receive(file, part, url, lambda done: tell(file.name, done, file.size), timeout, pause)
            received = _sha256(part)
            if received == file.sha256:
                part.replace(path)
                return path
            part.write_bytes(b"")
            if not has_old_part:
                break
            # bytes of an earlier fetch may be to blame: once more from the start
    rows = [("expected", f"sha256 {file.sha256}"), ("received", f"sha256 {received}"), ("from", url)]
    raise RunError(f"{file.name} has wrong bytes; it was removed", rows, "try again later, or another place")


def _receive(file: RemoteFile, part: Path, url: str, tell: Callable[[int], None], timeout: float, pause: float) -> None:
    """Fills `part` up to the file's size, over as many connections as it takes."""
    failures, mark = 0, part.stat().st_size
    while True:
        try:
            _receive_once(file, part, url, tell, timeout)
            return
        except _LineError as error:
            if error.from_start:
                part.write_bytes(b"")
            done = part.stat().st_size
            failures = 0 if done - mark > file.size // 100 else failures + 1
            mark = done
            if failures >= _ATTEMPTS:
                raise RunError(
                    f"{file.name} could not be fetched",
                    [
                        ("found", f"{error}, {failures} times in a row"),
                        ("from", url),
                        ("there", f"{count(done)} of {count(file.size)} bytes; the next fetch goes on from here"),
                    ],
                ) from error
            time.sleep(pause * 2**failures / 2)


def _receive_once(file: RemoteFile, part: Path, url: str, tell: Callable[[int], None], timeout: float) -> None:
    """One connection: appends what comes; `_LineError` if the end is not reached."""
    done = part.stat().st_size
    if done > file.size:
        part.write_bytes(b"")
        done = 0
    tell(done)
    if done == file.size:
        return
    headers = {"User-Agent": "squall", "Accept-Encoding": "identity"}
    if done:
        headers["Range"] = f"bytes={done}-"
    request = urllib.request.Request(url, headers=headers)
    with _open(request, timeout) as answer, part.open("r+b") as out:
        if done and not (answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {done}-")):
            done = 0  # this server knows no ranges
        out.truncate(done)
        out.seek(done)
        while chunk := _piece(answer):
            if done + len(chunk) > file.size:
                out.truncate(0)
                raise RunError(
                    f"{file.name} is not what it should be",
                    [("found", f"more than {count(file.size)} bytes"), ("from", url)],
                )
            out.write(chunk)
            done += len(chunk)
            tell(done)
    if done < file.size:
        raise _LineError(f"the line was cut at {count(done)} of {count(file.size)} bytes")


def _open(request: urllib.request.Request, timeout: float) -> http.client.HTTPResponse:
    if request.type not in ("http", "https"):
        raise InputError(f"{request.full_url} is no web address", [("needed", "http:// or https://")])
    try:
        answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code >= 500 or error.code in (408, 416, 429):
                said = f"the server says {error.code} {error.reason}"
                raise _LineError(said, from_start=error.code == 416) from error
            rows = [("found", f"{error.code} {error.reason}"), ("from", request.full_url)]
            raise RunError("the server does not give the file", rows) from error
    except (http.client.HTTPException, OSError) as error:
        raise _LineError(_reason(getattr(error, "reason", error))) from error
    return answer


def _piece(answer: http.client.HTTPResponse) -> bytes:
    try:
        return answer.read1(_CHUNK)
    except (http.client.HTTPException, OSError) as error:
        raise _LineError(_reason(error)) from error


def _reason(error: object) -> str:
    return "the line stalled" if isinstance(error, TimeoutError) else str(error) or type(error).__name__


@contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Holds the part file for this process alone; two writers would mix their bytes."""
    with part.open("ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another fetch is writing {part}", [("to do", "wait for it, or stop it")]) from None
        try:
            yield
        finally:
            if part.is_file() and part.stat().st_size == 0:
                part.unlink()


def _is_right(path: Path, sha256: str) -> bool:
    return path.is_file() and _sha256(path) == sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
