"""Kills training at random moments and resumes it, until it is done; then compares it with one that nobody disturbed.

    python -m tests.chaos --kills 100 --data DIR

Each session is a real command with real processes. It is ended by SIGKILL: all of it, its launcher alone (which must
take its ranks along), or one rank; at a random moment, or as soon as a checkpoint is being written. The next session
has another number of processes. The end must be the same bits, the same ledger, and the same records but for times.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OWN_LOOP = """\
import sys

import squall
import torch
import torch.nn.functional as F
from squall.data import sources
from torch import nn
from torch.utils.data import TensorDataset

found = sources.load("digits", None, "train")
data = TensorDataset(torch.from_numpy(found.images).flatten(1) / 255, torch.from_numpy(found.labels))
run = squall.Run(sys.argv[1], epochs=25, global_batch_size=128, worker_batch_size=16, ema=0.99, checkpoint="7step")
model = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 20, 0.5)
model, optimizer = run.setup(model, optimizer)
run.keep(scheduler=scheduler)
for step in run.steps(data):
    for images, labels in step:
        step.backward(F.cross_entropy(model(images), labels, reduction="sum"))
    optimizer.step()
    optimizer.zero_grad()
    scheduler.step()
    if step.ends_epoch:
        hits = run.evaluate(model, data, lambda out, labels: out.argmax(1) == labels)
        run.log(accuracy=hits.mean(), drawn=float(torch.rand(())))
run.finish()
"""


@dataclass(frozen=True)
class Job:
    """What is trained.

    Attributes:
        name: for the report.
        command: (arguments for a run's folder and a number of processes, whether it is resumed) -> a command.
        most: the most processes.
    """

    name: str
    first: list[str]
    again: list[str]
    most: int = 4
    loop: bool = False

    def command(self, folder: Path, processes: int, resumed: bool) -> list[str]:
        """The command of one session."""
        if self.loop:
            script = str(folder.parent / "own_loop.py")
            torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
            return [sys.executable, *(torchrun if processes > 1 else []), script, str(folder)]
        if resumed:
            return [sys.executable, "-m", "squall", "resume", str(folder), "--processes", str(processes), *self.again]
        flags = ["--out", str(folder), "--processes", str(processes)]
        return [sys.executable, "-m", "squall", "train", *self.first, *flags, *self.again]


@dataclass
class Tally:
    """What was done to a run."""

    kills: dict[str, int] = field(default_factory=dict)
    processes: list[int] = field(default_factory=list)
    resumed_at: list[int] = field(default_factory=list)

    def note(self, kind: str) -> None:
        """One more kill."""
        self.kills[kind] = self.kills.get(kind, 0) + 1

    @property
    def total(self) -> int:
        """All kills."""
        return sum(self.kills.values())


def jobs(data: str | None) -> list[Job]:
    """What is trained: the digits, a slice of CIFAR-10 where there is the set, a loop of one's own."""
    quiet = ["--quiet", "--restarts", "0"]
    found = [
        Job("digits", ["digits", "epochs=10", "checkpoint.every=5step"], quiet),
        Job("own loop", [], [], loop=True),
    ]
    if data is not None:
        slice_ = ["cifar10", "epochs=2", "data.train_limit=768", "data.test_limit=200", "checkpoint.every=1step"]
        small = ["compute.precision=fp32", "global_batch_size=128"]
        found.append(Job("cifar10", [*slice_, *small], [*quiet, "--data", data]))
    return found


def disturb(job: Job, folder: Path, draw: random.Random, kills: int) -> Tally:
    """Trains a job in a folder, killed at most so many times before it may end."""
    tally = Tally()
    if job.loop:
        (folder.parent / "own_loop.py").write_text(OWN_LOOP)
    log = folder.parent / f"{folder.name}.log"
    while True:
        processes = draw.randint(1, job.most)
        resumed = (folder / "records.jsonl").exists()
        tally.processes.append(processes)
        tally.resumed_at.append(newest(folder))
        with log.open("a") as out:
            session = subprocess.Popen(
                job.command(folder, processes, resumed),
                stdout=out,
                stderr=out,
                start_new_session=True,
                env=environment(),
            )
            try:
                how = kill(session, folder, draw) if tally.total < kills else ""
                status = session.wait(300)
            finally:
                end(session)
        if how:
            tally.note(how)
        elif status != 0:
            raise AssertionError(f"{job.name} ended with {status}, unkilled:\n{log.read_text()[-3000:]}")
        if is_finished(folder):
            return tally


def kill(session: subprocess.Popen[bytes], folder: Path, draw: random.Random) -> str:
    """Ends a session by SIGKILL at a moment of its training; says how."""
    saving = draw.random() < 0.4
    if not wait_until(lambda: began(folder, session.pid), session, 120):
        return ""
    if saving:
        seen = {path.name for path in half_written(folder)}
        wait_until(lambda: any(path.name not in seen for path in half_written(folder)), session, draw.uniform(0.2, 2))
    else:
        wait_until(lambda: False, session, draw.expovariate(1 / 1.5))
    if session.poll() is not None:
        return ""
    ranks = list(children(session.pid))
    victim = draw.choice(["all", "launcher", "rank"]) if ranks else "all"
    if victim == "all":
        for pid in [session.pid, *ranks]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    elif victim == "launcher":
        session.kill()
    else:
        with suppress(ProcessLookupError):
            os.kill(draw.choice(ranks), signal.SIGKILL)
    return f"{victim}{' while saving' if saving else ''}"


def began(folder: Path, pid: int) -> bool:
    """Whether this session has begun to train, not only to start."""
    with suppress(OSError, ValueError, IndexError, StopIteration):
        lines = (folder / "sessions.jsonl").read_text().splitlines()
        last = next(found for found in map(json.loads, reversed(lines)) if found["kind"] == "session")
        return last["pid"] == pid or last["pid"] in set(children(pid))
    return False


def is_finished(folder: Path) -> bool:
    """Whether the run came to its end."""
    with suppress(OSError, ValueError):
        return bool(json.loads((folder / "result.json").read_text())["outcome"] == "finished")
    return False


def half_written(folder: Path) -> list[Path]:
    """Checkpoints that are being written."""
    return list((folder / "checkpoints").glob(".step-*"))


def newest(folder: Path) -> int:
    """The step of the newest checkpoint."""
    return max((int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*")), default=0)


def children(pid: int) -> Iterator[int]:
    """The ranks that a launcher started, without what they started themselves."""
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                with suppress(OSError):
                    if b"\0RANK=" in Path(f"/proc/{child}/environ").read_bytes():
                        yield int(child)


def wait_until(true: Any, session: subprocess.Popen[bytes], seconds: float) -> bool:
    """Looks every few milliseconds, until it is so, the session is over, or the time is."""
    over = time.monotonic() + seconds
    while time.monotonic() < over and session.poll() is None:
        if true():
            return True
        time.sleep(0.002)  # between two looks at what other processes do; nothing rests on its length
    return bool(true())


def end(session: subprocess.Popen[bytes]) -> None:
    """Nothing of a session outlives it: within ten seconds all of its processes are gone.

    Raises:
        AssertionError: some were not.
    """
    over = time.monotonic() + 10
    while left := group(session.pid):
        if session.poll() is None:
            session.kill()
        if time.monotonic() > over:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"processes outlive their session: {left}")
        time.sleep(0.02)  # between two looks at the process table
    session.wait()


def group(leader: int) -> list[int]:
    """Living processes whose session, or whose launcher, is this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == leader:
            continue
        with suppress(OSError, IndexError):
            state, *rest = (entry / "stat").read_text().rpartition(")")[2].split()
            mark = f"CHAOS_SESSION={os.getpid()}".encode()
            if state != "Z" and int(rest[2]) and mark in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def environment() -> dict[str, str]:
    """Of a session; the mark is inherited by everything that it starts."""
    return {**os.environ, "CHAOS_SESSION": str(os.getpid()), "OMP_NUM_THREADS": "1"}


def training(folder: Path) -> list[dict[str, Any]]:
    """A run's records without what may differ: times, names, and the processes that did it."""
    found = []
    for line in (folder / "records.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name in ("seconds", "spent", "samples_per_second", "evaluation", "pace", "folder", "name", "processes"):
            record.pop(name, None)
        if record["kind"] == "ended":
            record["result"] = {
                name: value
                for name, value in record["result"].items()
                if name not in ("seconds", "samples_per_second", "peak_rss_bytes", "name", "processes", "commit")
            }
        found.append(record)
    return found


def compare(undisturbed: Path, disturbed: Path) -> str:
    """The weights' hash, if the two are the same training.

    Raises:
        AssertionError: they are not.
    """
    one, other = (json.loads((folder / "result.json").read_text()) for folder in (undisturbed, disturbed))
    assert one["weights_sha256"] == other["weights_sha256"]
    assert one["ledger"] == other["ledger"]
    first, second = training(undisturbed), training(disturbed)
    assert len(first) == len(second), (len(first), len(second))
    for a, b in zip(first, second, strict=True):
        assert a == b, (a, b)
    left = [path.name for path in disturbed.iterdir() if path.name.startswith(".")]
    assert not left, left
    assert not half_written(disturbed)
    return str(one["weights_sha256"])


def undisturbed(job: Job, folder: Path) -> None:
    """Trains a job that nobody disturbs, on one process."""
    if job.loop:
        (folder.parent / "own_loop.py").write_text(OWN_LOOP)
    done = subprocess.run(
        job.command(folder, 1, False), env=environment(), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr


def main() -> int:
    """Kills until the number is reached, run after run, and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--per-run", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", default=None, help="folder of the data sets; without it no slice of CIFAR-10")
    given = parser.parse_args()
    draw, kinds, done, started = random.Random(given.seed), jobs(given.data), 0, time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        references: dict[str, Path] = {}
        number = 0
        while done < given.kills:
            job = kinds[number % len(kinds)]
            folder = Path(place) / f"run-{number}"
            if job.name not in references:
                references[job.name] = Path(place) / f"undisturbed-{job.name.replace(' ', '-')}"
                undisturbed(job, references[job.name])
            tally = disturb(job, folder, draw, min(given.per_run, given.kills - done))
            sha256 = compare(references[job.name], folder)
            done, number = done + tally.total, number + 1
            kills = ", ".join(f"{count} x {kind}" for kind, count in sorted(tally.kills.items()))
            steps = " ".join(map(str, tally.resumed_at[1:]))
            print(
                f"{done:>4} kills  {job.name:<9} {sha256[:12]} equal; processes {tally.processes}, "
                f"resumed at {steps}; {kills}; {time.monotonic() - started:.0f} s",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
