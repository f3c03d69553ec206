"""A tracker's client that writes down what it is told, and misbehaves as the run's name says: "blocks in log", ...

It runs in the tracker's own process (`squall.run.track_child`), as the real ones do. Its files, in the run's folder:
seen.jsonl (what it was told), pids.json (its process and, for "parent", one that it started in a session of its own).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SECRET = "geheim"


class Client:
    def start(self, known: str | None, name: str, start_step: int, folder: str | None) -> str:
        assert folder is not None
        self._folder, self._name = Path(folder), name
        pids = [os.getpid()]
        if name.startswith("parent "):
            self._name = name.removeprefix("parent ")
            sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
            pids.append(subprocess.Popen(sleeper, start_new_session=True).pid)
        temporary = self._folder / "pids.tmp"
        temporary.write_text(json.dumps(pids))
        temporary.rename(self._folder / "pids.json")
        self._note("start", {"known": known, "start_step": start_step})
        return known or "number one"

    def config(self, values: Mapping[str, Any]) -> None:
        self._note("config", values)

    def log(self, points: Sequence[tuple[int, float, Mapping[str, float]]]) -> None:
        self._note("log", [(step, values) for step, _, values in points])

    def end(self, outcome: str, step: int, result: Mapping[str, Any]) -> None:
        self._note("end", {"outcome": outcome, "step": step, "result": result})

    def _note(self, what: str, values: Any) -> None:
        with (self._folder / "seen.jsonl").open("a") as file:
            file.write(json.dumps([what, values]) + "\n")
        fault, _, where = self._name.partition(" in ")
        if where == what:
            self._do(fault)

    def _do(self, fault: str) -> None:
        match fault:
            case "fails":
                raise ValueError(f"no answer from https://me:{SECRET}@host/api\nand more")
            case "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            case "blocks":
                time.sleep(600)
            case "waits":  # for a word of the test
                while not (self._folder / "go").exists():
                    time.sleep(0.01)
