"""`squall runs resize` and `stop` with a training that runs: it changes its processes and stops in mid-epoch, and what
it has computed by then is kept.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from squall import records

DEADLINE_S = 60.0
EPOCH = 180  # steps: whoever looks for requests only where an epoch ends comes too late


def squall(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "squall", *arguments]


def answer(folder: Path, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(squall("runs", *arguments, "--json"), cwd=folder, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_run_is_resized_and_stopped_between_its_steps(tmp_path: Path) -> None:
    recipe = ["digits", "global_batch_size=8", "worker_batch_size=4", "lr=0.001", "epochs=1000"]
    command = squall("train", *recipe, "--processes", "2", "--out", "runs/one", "--quiet")
    folder = tmp_path / "runs" / "one"
    with (tmp_path / "log").open("w") as log:
        training = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    try:
        end = time.monotonic() + DEADLINE_S
        while not (folder / "sessions.jsonl").exists() and time.monotonic() < end:
            time.sleep(0.02)
        changed = answer(tmp_path, "resize", "one", "--processes", "1")
        assert (changed["state"], changed["processes"]) == ("running", 1)
        stopped = answer(tmp_path, "stop", "last")
        assert (stopped["state"], stopped["checkpoint"], stopped["resumable"]) == ("stopped", stopped["step"], True)
        assert training.wait(DEADLINE_S) == 143, (tmp_path / "log").read_text()
    finally:
        training.kill()
        training.wait()
    told = records.read(folder / "sessions.jsonl")
    sessions = [record for record in told if record["kind"] == "session"]
    ends = [record for record in told if record["kind"] == "session_ended"]
    assert [session["processes"] for session in sessions] == [2, 1]
    assert sessions[1]["start_step"] == ends[0]["step"]
    assert {end["step"] % EPOCH == 0 for end in ends} == {False}
    assert not (folder / ".request.json").exists()
