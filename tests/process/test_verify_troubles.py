"""A script that hangs, crashes, forks or never steps gets a clear verdict in its time, and no process stays behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

from squall.engine.leftovers import marked

SCRIPT = Path(__file__).parents[1] / "verify" / "troubles" / "script.py"
LIMIT_S = 12
LONGEST_S = LIMIT_S + 60  # the ranks' limit, a start and a grace on busy cores; what is left behind sleeps for 600 s
TEXT = SCRIPT.read_text(encoding="utf-8").splitlines()


def line_of(text: str) -> int:
    return next(number for number, line in enumerate(TEXT, start=1) if text in line)


@dataclass(frozen=True)
class Said:
    status: int
    text: str
    verdict: dict  # type: ignore[type-arg]


@pytest.fixture
def verify(tmp_path: Path):  # type: ignore[no-untyped-def]
    mark = f"VERIFY_MARK={uuid.uuid4()}"
    name, value = mark.split("=")

    def run(how: str, processes: str = "2") -> Said:
        command = [sys.executable, "-m", "squall", "verify", str(SCRIPT), "-P", processes, "--limit", f"{LIMIT_S}s"]
        started = time.monotonic()
        done = subprocess.run(
            [*command, "--to", str(tmp_path), "--", how],
            env={**os.environ, name: value},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert time.monotonic() - started < LONGEST_S * len(processes.split(","))
        assert not marked(mark.encode()), "processes were left behind"
        assert "Traceback" not in done.stdout + done.stderr
        return Said(done.returncode, done.stdout, json.loads((tmp_path / "verify.json").read_text()))

    return run


def test_a_script_that_hangs_is_shown_where(verify) -> None:  # type: ignore[no-untyped-def]
    said = verify("hang")
    assert said.status == 1
    assert f"was not done after {LIMIT_S} s with 2 processes" in said.text
    assert f"script.py:{line_of('rank 1 waits here for ever')}" in said.text
    assert said.verdict["troubles"][0]["what"] == "hung"


def test_a_script_that_crashes_is_shown_where(verify) -> None:  # type: ignore[no-untyped-def]
    said = verify("crash")
    assert said.status == 1
    assert "ZeroDivisionError: the third batch is one too many" in said.text
    assert f"script.py:{line_of('raise ZeroDivisionError')}" in said.text
    assert said.verdict["troubles"][0]["place"]["line"] == line_of("raise ZeroDivisionError")


def test_a_rank_that_is_killed_is_named(verify) -> None:  # type: ignore[no-untyped-def]
    said = verify("kill")
    assert said.status == 1
    assert "rank 1" in said.text
    assert "SIGKILL" in said.text


def test_a_script_that_leaves_early_is_told_apart(verify) -> None:  # type: ignore[no-untyped-def]
    said = verify("exit")
    assert said.status == 1
    assert "exit status 3" in said.text


@pytest.mark.parametrize("how", ["fork", "child"])
def test_what_a_script_starts_and_leaves_is_ended(verify, how: str) -> None:  # type: ignore[no-untyped-def]
    said = verify(how)
    assert said.status == 0, said.text
    assert {trouble["what"] for trouble in said.verdict["troubles"]} == {"left processes behind"}
    assert next(one for one in said.verdict["findings"] if one["check"] == "gradient")["outcome"] == "ok"


def test_a_script_that_never_steps_is_told_so(verify) -> None:  # type: ignore[no-untyped-def]
    said = verify("nothing", "2,3")
    assert said.status == 1
    assert "made no update" in said.text
    assert len(said.verdict["troubles"]) == 1
    assert not said.verdict["findings"]


def test_a_script_that_starts_its_own_processes_is_told_what_to_do(verify) -> None:  # type: ignore[no-untyped-def]
    said = verify("spawn")
    assert said.status == 1
    assert "starts its own processes" in said.text
    assert f"script.py:{line_of('mp.spawn(')}" in said.text
    assert "RANK" in said.text


def test_an_error_before_any_training_is_harmless_to_a_terminal(verify) -> None:  # type: ignore[no-untyped-def]
    said = verify("early")
    assert said.status == 1
    assert "RuntimeError: no data" in said.text
    assert "\x1b[31m" not in said.text


def test_a_trouble_with_one_number_of_processes_does_not_hide_the_others(verify, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    said = verify("crash", "1,2")  # rank 1 is there with two processes only
    assert said.status == 1
    assert "crashed with 2 processes" in said.text
    assert next(one for one in said.verdict["findings"] if one["check"] == "weights")["outcome"] == "--"
