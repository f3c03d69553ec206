"""A training whose output nobody reads any more goes on to its end: `squall train ... | head -1`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
import squall
from squall.recipe import load

squall.train(None, load("digits").model_copy(update={"epochs": 3}), out=sys.argv[1])
"""
DEADLINE_S = 120


@pytest.mark.parametrize("how", ["alone", "two processes", "json", "script"])
def test_a_run_goes_on_when_its_output_is_closed(how: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train = [sys.executable, "-m", "squall", "train", "digits", "epochs=3", "--out", str(folder)]
    more = {"two processes": ["--processes", "2"], "json": ["--json"]}.get(how, [])
    command = [sys.executable, "-c", SCRIPT, str(folder)] if how == "script" else [*train, *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        assert run.stdout.readline()
        run.stdout.close()
        said = run.stderr.read()
        assert run.wait(DEADLINE_S) == 0, said
    assert said == ""
    assert json.loads((folder / "result.json").read_text())["outcome"] == "finished"
