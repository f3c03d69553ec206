"""A role's file: how it begins anew, and what of it is shown when the role died."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from squall.engine.ray import output
from squall.engine.ray.output import last_lines

SAID = """replica-0, incarnation 1: process 1 on here
of the first life
replica-0, incarnation 2: process 2 on here
one
two
three
"""


def test_the_last_lines_are_of_the_newest_incarnation(tmp_path: Path) -> None:
    path = tmp_path / "replica-0.log"
    assert last_lines(path, "replica-0", 8) == []
    path.write_text("what a library says first\n")
    assert last_lines(path, "replica-0", 8) == ["what a library says first"]
    path.write_text(SAID)
    assert last_lines(path, "replica-0", 8) == ["one", "two", "three"]
    assert last_lines(path, "replica-0", 2) == ["two", "three"]
    path.write_text(SAID + "replica-0, incarnation 3: process 3 on here\n")
    assert last_lines(path, "replica-0", 8) == []


def test_of_a_long_file_only_the_end_is_read(tmp_path: Path) -> None:
    path = tmp_path / "replica-0.log"
    with path.open("wb") as file:
        file.write(SAID.encode())
        file.seek(20 << 30)  # a hole: more than anybody wants to read
        file.write(b"\nthe end\n")
    assert last_lines(path, "replica-0", 1) == ["the end"]


def test_a_role_that_begins_turns_over_a_file_that_is_full(tmp_path: Path) -> None:
    path = tmp_path / "replica-0.log"
    script = f"from pathlib import Path; from squall.engine.ray.output import write_to; write_to(Path({str(path)!r}))"
    for size, found in ((output._MOST_IN_FILE, ["replica-0.log"]), (1, ["replica-0.log", "replica-0.older.log"])):
        with path.open("ab") as file:
            file.truncate(file.tell() + size)
        subprocess.run([sys.executable, "-c", script + "; print('again')"], check=True, timeout=60)
        assert sorted(os.listdir(tmp_path)) == found
    assert path.read_text() == "again\n"
