"""What ranks write: the last lines, the terminal, the files; nobody is made to wait."""

import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from squall.engine import outlets
from squall.engine.outlets import Files, LogFolder, Outlet, Terminal
from squall.engine.ranklogs import LINES, RankLogs, Tail


def shown(*pieces: bytes) -> list[str]:
    tail = Tail()
    for piece in pieces:
        tail.add(piece)
    return tail.lines()


def test_the_last_lines_are_kept_however_the_bytes_are_cut() -> None:
    text = "".join(f"line {i}\n" for i in range(100)).encode()
    wanted = [f"line {i}" for i in range(100)][-LINES:]
    for size in (1, 3, 7, len(text)):
        assert shown(*(text[i : i + size] for i in range(0, len(text), size))) == wanted


def test_a_line_under_way_counts_and_empty_ones_do_not() -> None:
    assert shown(b"a\n\n", b"half", b" a line") == ["a", "half a line"]


def test_lines_are_as_a_terminal_shows_them() -> None:
    assert shown(b"\x1b[31mred\x1b[0m \x07bell\n") == ["red bell"]
    assert shown(b"  1%\r 50%\r", b"100%\n", b"dos\r\n", b"bar 3%\r") == ["100%", "dos", "bar 3%"]
    assert shown("gänse \xff".encode("latin-1")) == ["g�nse �"]


def test_a_line_without_an_end_is_bounded() -> None:
    tail = Tail()
    for _ in range(100):
        tail.add(b"x" * 50_000)
    assert len(tail._open) <= 1 << 16
    assert len(tail.lines()[0]) == 500


def test_who_puts_in_never_waits_and_what_did_not_fit_is_counted() -> None:
    blocked, out = threading.Event(), []

    def write(key: int, data: bytes) -> None:
        blocked.wait(30)
        out.append((key, data))

    outlet = Outlet(write)
    started = time.monotonic()
    for _ in range(100):
        outlet.put(1, b"x" * 49_999 + b"\n")
    assert time.monotonic() - started < 5
    blocked.set()
    assert outlet.close()
    assert sum(len(data) for _, data in out) < 2 << 20
    lost = 100 - sum(data.startswith(b"x") for _, data in out)
    notes = [
        re.fullmatch(r"squall: (\d+) lines left out: .*\n", data.decode()) for _, data in out if data[0] != ord("x")
    ]
    assert sum(int(note[1]) for note in notes if note) == lost > 0


def test_an_outlet_that_stands_still_does_not_keep_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlets, "CLOSE_S", 0.1)
    blocked = threading.Event()
    finished = threading.Event()
    outlet = Outlet(lambda key, data: blocked.wait(30) and None, finished.set)
    outlet.put(1, b"x")
    assert not outlet.close()
    assert not finished.is_set()
    blocked.set()
    assert outlet.close()
    assert finished.is_set()


def test_nothing_is_written_before_the_run_has_begun(tmp_path: Path) -> None:
    folder = LogFolder(tmp_path / "logs", after=tmp_path / "records.jsonl")
    files = Files(folder)
    files(1, b"early\n")
    files.finish()
    assert list(tmp_path.iterdir()) == []
    folder.after.touch()
    files.finish()
    files(1, b"late\n")
    head, *lines = folder.file(1).read_text().splitlines()
    assert head.endswith(", rank 1")
    assert lines == ["early", "late"]
    Files(folder)(1, b"of another launch\n")
    assert folder.file(1).read_text().splitlines()[3:][1:] == ["of another launch"]
    assert not folder.file(0).exists()


def test_what_came_early_is_bounded(tmp_path: Path) -> None:
    files = Files(LogFolder(tmp_path / "logs", after=tmp_path / "never"))
    for _ in range(50):
        files(0, b"x" * 10_000)
    assert sum(map(len, files._early.values())) <= 1 << 16


def test_files_stay_small_and_keep_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlets, "_MOST_IN_FILE", 1000)
    files = Files(LogFolder(tmp_path, after=tmp_path))
    for i in range(300):
        files(2, f"line {i}\n".encode())
    assert {path.name for path in tmp_path.iterdir()} == {"rank-2.log", "rank-2.older.log"}
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2500
    assert (tmp_path / "rank-2.log").read_text().endswith("line 299\n")


def test_a_disk_that_takes_nothing_costs_lines_only(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where a folder should be")
    Files(LogFolder(tmp_path / "logs", after=tmp_path))(0, b"x\n")


def test_a_disk_that_does_not_answer_costs_lines_only(tmp_path: Path) -> None:
    too_long = tmp_path / ("x" * 300)  # an error for whoever asks, like a network disk that has gone
    folder = LogFolder(too_long / "logs", after=too_long / "records.jsonl")
    Files(folder)(0, b"x\n")
    with RankLogs(1, folder) as logs:
        assert logs.paths() == {}


def test_a_terminal_that_does_not_block_is_waited_for() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    outlet, got = Outlet(Terminal()), bytearray()
    for _ in range(8):
        outlet.put(writer, b"x" * 50_000)
    time.sleep(0.1)  # the pipe is full by now
    while len(got) < 400_000:
        got += os.read(reader, 1 << 16)
    assert outlet.close()
    os.close(reader)
    os.close(writer)


Ends = list[tuple[int | None, int]]


def collected(processes: int, write: Callable[[Ends], object], capfd: pytest.CaptureFixture[str]) -> tuple[str, str]:
    before = len(os.listdir("/proc/self/fd"))
    with RankLogs(processes, None) as logs, ExitStack() as stack:
        ends = [stack.enter_context(logs.pipes(rank)) for rank in range(processes)]
        logs.listen()
        write(ends)
    assert len(os.listdir("/proc/self/fd")) == before
    return capfd.readouterr()


def test_streams_reach_the_launchers_own_and_lines_of_ranks_do_not_mix(capfd: pytest.CaptureFixture[str]) -> None:
    def write(ends: Ends) -> None:
        assert ends[0][0] is None  # rank 0 has the terminal
        for i in range(200):
            for rank in range(3):
                for fd in ends[rank]:
                    if fd is not None:
                        os.write(fd, f"rank {rank} ".encode())
                        os.write(fd, f"line {i}\n".encode())

    out, err = collected(3, write, capfd)
    assert sorted(out.splitlines()) == sorted(f"rank {rank} line {i}" for rank in (1, 2) for i in range(200))
    assert sorted(err.splitlines()) == sorted(f"rank {rank} line {i}" for rank in range(3) for i in range(200))
    assert [line for line in err.splitlines() if "rank 1" in line] == [f"rank 1 line {i}" for i in range(200)]


def test_a_last_line_without_its_end_is_ended(capfd: pytest.CaptureFixture[str]) -> None:
    _, err = collected(2, lambda ends: [os.write(err, b"no end") for _, err in ends], capfd)
    assert err == "no end\nno end\n"


def test_a_line_whose_end_does_not_come_is_shown_all_the_same(capfd: pytest.CaptureFixture[str]) -> None:
    def write(ends: Ends) -> None:
        os.write(ends[0][1], b"your choice? ")
        end, seen = time.monotonic() + 10, ""
        while not seen and time.monotonic() < end:
            seen = capfd.readouterr().err
        assert seen == "your choice? "

    collected(1, write, capfd)


def test_an_end_that_an_escaped_process_holds_open_is_not_waited_for() -> None:
    with RankLogs(1, None) as logs:
        with logs.pipes(0) as (_, err):
            held = os.dup(err)
        os.write(held, b"last words\n")
        logs.listen()
        started = time.monotonic()
        logs.close()
        assert time.monotonic() - started < 4
        os.close(held)
    assert logs.tails() == {0: ["last words"]}


def test_ranks_that_could_not_be_started_leave_no_pipes() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ZeroDivisionError), RankLogs(2, None) as logs, logs.pipes(1):
        raise ZeroDivisionError
    assert len(os.listdir("/proc/self/fd")) == before
