"""Fixtures for tests of the launcher: a script that ranks run, and a mark that finds all processes of a test."""

import contextlib
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from squall.engine.leftovers import marked

MARK = "SQUALL_TEST_MARK"


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
    """Writes what ranks run, and gives its path."""

    def write(text: str) -> str:
        path = tmp_path / "rank.py"
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[int]]]:
    """Processes that a test has started, however far from here; none may be left at its end."""
    value = uuid.uuid4().hex
    monkeypatch.setenv(MARK, value)
    yield lambda: marked(f"{MARK}={value}".encode())
    left = marked(f"{MARK}={value}".encode())
    for pid in left:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    assert left == []
