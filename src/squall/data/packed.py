"""Reads a file that may be packed (.gz, .xz) as far as it goes, and says why it ended.

A reader wants to tell a person "26,791 of 60,000 images" and not "EOFError": so a damaged stream gives what could be
unpacked before the damage, with a word on it. No more is unpacked than was asked for, so a small file cannot fill the
memory.
"""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from squall.errors import InputError

SUFFIXES = ("", ".gz", ".xz")

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Unpacked:
    """What a file holds.

    Attributes:
        data: the bytes, up to the end, the damage or the limit.
        state: "whole", "cut short" (the stream has no end), "corrupt" (it contradicts itself) or "too long" (there is
            more than was asked for).
        detail: the decoder's word on a corrupt stream.
    """

    data: bytearray
    state: Literal["whole", "cut short", "corrupt", "too long"]
    detail: str = ""


def find(folder: Path, name: str) -> Path | None:
    """The file of that name in the folder, plain before .gz before .xz; None if there is none."""
    return next((path for path in (folder / f"{name}{suffix}" for suffix in SUFFIXES) if path.is_file()), None)


def unpack(path: Path, limit: int) -> Unpacked:
    """Unpacks up to `limit` bytes of a file, by its suffix; an `InputError` if it cannot be read at all."""
    data = bytearray()
    try:
        with _open(path) as stream:
            while len(data) <= limit:
                # read1: what was unpacked before the damage is handed out before the error is raised
                chunk = stream.read1(_CHUNK)
                if not chunk:
                    return Unpacked(data, "whole")
                data += chunk
    except EOFError:
        return Unpacked(data, "cut short")
    except (gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        return Unpacked(data, "corrupt", str(error))
    except OSError as error:
        raise InputError(f"{path} cannot be read", [("found", error.strerror or str(error))]) from error
    del data[limit:]
    return Unpacked(data, "too long")


def _open(path: Path) -> gzip.GzipFile | lzma.LZMAFile | io.BufferedReader:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    return lzma.open(path, "rb") if path.suffix == ".xz" else path.open("rb")


def has_whole_end(path: Path, size: int) -> bool:
    """A cheap look at a file's end: could it unpack to `size` bytes? False means that it is damaged.

    A plain file has that size; gzip ends with the size modulo 2**32 (RFC 1952); xz ends with "YZ".
    """
    if path.suffix not in (".gz", ".xz"):
        return path.stat().st_size == size
    with path.open("rb") as stream:
        if stream.seek(0, 2) < 18:
            return False
        stream.seek(-4, 2)
        end = stream.read(4)
    return end[2:] == b"YZ" if path.suffix == ".xz" else int.from_bytes(end, "little") == size % 2**32
