"""Stand-ins for sbatch, srun and scontrol, and what SLURM itself does to a job: starts it, signals it, queues it again.

Each is this file under another name in a folder that goes first in PATH; what they were called with, and which
processes they started, stands in files of the folder that STANDIN names. As with SLURM's own way to track processes,
a signal for the ranks goes to those processes that srun started, and to nothing else.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 90.0


class Slurm:
    """A cluster of one machine.

    Arguments:
        folder: for its files.
        tasks: of each job step.
        path: goes before PATH as well: where a stand-in for squall lies, or the real one.
    """

    def __init__(self, folder: Path, tasks: int, path: Path) -> None:
        self.folder, self.tasks, self.job = folder, tasks, str(40_000 + os.getpid() % 20_000)
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        for name in ("sbatch", "srun", "scontrol"):
            (self.bin / name).write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {name} "$@"\n')
            (self.bin / name).chmod(0o755)
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SQUALL_"))},
            "PATH": f"{self.bin}:{path}:{os.environ['PATH']}",
            "STANDIN": str(folder),
            "STANDIN_TASKS": str(tasks),
            "STANDIN_JOB": self.job,
            "PYTHONPATH": os.pathsep.join(sys.path),
        }

    def start(self, script: Path, *arguments: str, restarts: int = 0, cwd: Path, name: str = "job") -> Job:
        """Runs a batch file, as often as SLURM has queued it again before."""
        for file in self.folder.glob("task-*"):
            file.unlink()
        environ = {**self.environ, "SLURM_JOB_ID": self.job, "SLURM_JOB_NAME": name, "SLURM_NTASKS": str(self.tasks)}
        environ |= {"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}
        log = (self.folder / f"log-{restarts}").open("wb")
        process = subprocess.Popen(
            ["bash", str(script), *arguments],
            cwd=cwd,
            env=environ,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        log.close()
        return Job(self, process, self.folder / f"log-{restarts}")

    @property
    def requeued(self) -> list[str]:
        """The jobs that were asked to come again."""
        path = self.folder / "requeued"
        return path.read_text().split() if path.exists() else []

    def called(self, name: str) -> list[list[str]]:
        """What a stand-in was called with, each time."""
        path = self.folder / f"{name}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Job:
    """A batch file that runs."""

    def __init__(self, slurm: Slurm, process: subprocess.Popen[bytes], log: Path) -> None:
        self._slurm, self._process, self._log = slurm, process, log

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        """Whatever a test did: nothing of the job is left."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    @property
    def log(self) -> str:
        """What it printed."""
        return self._log.read_text()

    def wait_for(self, what: Callable[[], Any], why: str) -> None:
        """Returns when something is so."""
        end = time.monotonic() + DEADLINE_S
        while not what():
            assert self._process.poll() is None, f"{why}: the job left with {self._process.poll()}\n{self.log}"
            assert time.monotonic() < end, f"{why}\n{self.log}"
            time.sleep(0.02)  # between two looks at a job, which has a deadline

    def signal_ranks(self, number: int) -> None:
        """What `--signal` and a grace time do: to the ranks, not to the batch file."""
        for path in sorted(self._slurm.folder.glob("task-*")):
            os.kill(int(path.read_text()), number)

    def signal_all(self, number: int) -> None:
        """What the end of a job does: to the ranks and to the batch file's shell."""
        self.signal_ranks(number)
        os.kill(self._process.pid, number)

    def stays(self, seconds: float) -> bool:
        """Whether it runs so long at least."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def status(self) -> int:
        """Its exit status, once it has ended."""
        return self._process.wait(DEADLINE_S)


def flags(text: str) -> dict[str, str]:
    """The flags of sbatch in a batch file: its comments before the first command."""
    head = re.split(r"^(?!#|\s*$)", text, maxsplit=1, flags=re.MULTILINE)[0]
    found = re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", head, re.MULTILINE)
    assert len(found) == text.count("#SBATCH"), "sbatch does not read flags after a command"
    return {name: value.strip("'") for name, value in found}


def _sbatch(arguments: list[str]) -> int:
    text = Path(arguments[-1]).read_text()
    if "refused" in text:
        print("sbatch: error: invalid partition specified: refused", file=sys.stderr)
        return 1
    (_folder() / "job.sh").write_text(text)
    print(f"Submitted batch job {os.environ['STANDIN_JOB']}")
    return 0


def _srun(arguments: list[str]) -> int:
    while arguments[0].startswith("-"):
        arguments = arguments[1:]
    tasks = int(os.environ["STANDIN_TASKS"])
    fixed = {
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_STEP_TASKS_PER_NODE": str(tasks),
        "SLURM_STEP_NODELIST": "node1",
        "SLURM_NODEID": "0",
        "SLURM_STEP_ID": "0",
    }
    started = []
    for rank in range(tasks):
        environ = {**os.environ, **fixed, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        started.append(subprocess.Popen(arguments, env=environ))
        (_folder() / f"task-{rank}").write_text(str(started[-1].pid))
    statuses = [task.wait() for task in started]
    return max(status if status >= 0 else 128 - status for status in statuses)


def _scontrol(arguments: list[str]) -> int:
    if (_folder() / "disabled").exists():
        print("Requested operation is presently disabled", file=sys.stderr)
        return 1
    with (_folder() / "requeued").open("a") as file:
        file.write(f"{arguments[1]}\n")
    return 0


def _folder() -> Path:
    return Path(os.environ["STANDIN"])


if __name__ == "__main__":
    called, given = sys.argv[1], sys.argv[2:]
    with (_folder() / f"{called}.jsonl").open("a") as record:
        record.write(json.dumps(given) + "\n")
    sys.exit({"sbatch": _sbatch, "srun": _srun, "scontrol": _scontrol}[called](given))
