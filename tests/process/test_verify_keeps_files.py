"""A script under `squall verify` saves where it always saves; afterwards the user's files are as they were."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.process.test_verify_stage import gone, parent
from tests.unit.test_verify_files import state

SCRIPTS = Path(__file__).parents[1] / "verify" / "troubles"
LIMIT_S = 180


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Where a script runs, with what an earlier training has left there."""
    folder = tmp_path / "work"
    folder.mkdir()
    for name in ("out", "tmp", "elsewhere"):
        (tmp_path / name).mkdir()
    return folder


def command(script: str, *arguments: str) -> list[str]:
    flags = ["-P", "2", "--to", "../out", "--limit", "60s", "--checks", "gradient"]
    return [sys.executable, "-m", "squall", "verify", str(SCRIPTS / script), *flags, "--", *arguments]


def run(work: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "TMPDIR": str(work.parent / "tmp")}
    return subprocess.run(words, cwd=work, env=environ, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def earlier(work: Path) -> None:
    """What rotates.py finds and changes."""
    for name in (
        "checkpoint-1/real",
        "checkpoint-1/model.pt",
        "old-run/deep/x",
        "data/x",
        "exported/model.safetensors",
    ):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(f"the real {name}")
    (work / "latest").symlink_to("checkpoint-1")


def test_files_are_as_they_were_and_no_trial_sees_those_of_the_last(work: Path) -> None:
    for name in ("model.pt", "model.safetensors", "log.txt", "old.txt"):
        (work / name).write_text(f"the real {name}")
    before = state(work)
    words = command("saves.py")
    words[words.index("gradient")] = "gradient,determinism"
    done = run(work, *words)
    assert done.returncode == 0, done.stdout
    assert state(work) == before


def test_checkpoints_that_are_cleared_staged_rotated_and_linked(work: Path) -> None:
    earlier(work)
    elsewhere = work.parent / "elsewhere"
    before = state(work)
    words = command("rotates.py", str(elsewhere), "train")
    words[words.index("2")] = "2,3"
    done = run(work, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert state(work) == before
    assert "has written new files that stay" in " ".join(done.stdout.split())
    assert str(elsewhere / "last.pt") in done.stdout
    assert list((work.parent / "tmp").glob("squall-verify-*")) == []


def test_a_file_too_large_to_be_copied_is_not_written_to(work: Path) -> None:
    earlier(work)
    large = work.parent / "elsewhere" / "large.bin"
    with large.open("wb") as file:
        file.write(b"real")
        file.truncate(8 << 40)
    before = state(work)
    done = run(work, *command("rotates.py", str(large.parent), "map"))
    assert done.returncode == 1
    said = " ".join(done.stdout.split())
    assert "was stopped before it changed a file of which no copy could be made" in said
    assert f"{large} 8796.1 GB: only" in said
    assert 'np.memmap(OUT / "large.bin", mode="r+")' in said
    assert "TMPDIR=FOLDER" in said
    with large.open("rb") as file:
        assert file.read(8) == b"real\0\0\0\0"
    assert state(work) == before


ASSERT = """
import sys
from squall import verify
verify.assert_right(sys.argv[1], sys.argv[2:], processes=(2,), limit_s=100)
"""


@contextmanager
def waiting(work: Path, how: str) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """An owner whose ranks have written and wait, and the processes below it."""
    arguments = [str(work.parent / "elsewhere"), "wait"]
    words = command("rotates.py", *arguments)
    if how == "assert_right":
        words = [sys.executable, "-c", ASSERT, str(SCRIPTS / "rotates.py"), *arguments]
    os.mkfifo(work.parent / "elsewhere" / "fifo")
    environ = {**os.environ, "TMPDIR": str(work.parent / "tmp")}
    fd = os.open(work.parent / "elsewhere" / "fifo", os.O_RDWR)
    with subprocess.Popen(words, cwd=work, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as owner:
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            said = b""
            while said.count(b"\n") < 2:
                assert poll.poll(90_000)
                said += os.read(fd, 4096)
            pids = {int(word) for word in said.split()}
            stage = next(parent(pid) for pid in pids if parent(parent(pid)) == owner.pid)
            yield owner, [*pids, stage]
        finally:
            os.close(fd)
            owner.kill()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("how", ["verify", "assert_right"])
def test_however_it_is_ended_the_files_come_back(work: Path, how: str, number: signal.Signals) -> None:
    earlier(work)
    before = state(work)
    with waiting(work, how) as (owner, below):
        assert state(work) != before
        owner.send_signal(number)
        assert gone([owner.pid, *below], 60)
        _, complaint = owner.communicate(timeout=60)
    assert owner.returncode != 0
    assert state(work) == before, complaint
    if how == "assert_right" and number in (signal.SIGHUP, signal.SIGTERM):
        assert owner.returncode == -number  # as without it
    if how == "verify" and number in (signal.SIGHUP, signal.SIGTERM):
        assert owner.returncode == 128 + number


def test_a_hangup_that_is_ignored_stays_so(work: Path) -> None:
    earlier(work)
    before = state(work)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with waiting(work, "verify") as (owner, below):
            owner.send_signal(signal.SIGHUP)
            owner.send_signal(signal.SIGTERM)
            assert gone([owner.pid, *below], 60)
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert owner.returncode == 128 + signal.SIGTERM
    assert state(work) == before
