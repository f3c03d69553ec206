"""What every benchmark here needs: processes with a deadline, records as JSON lines, medians, a table.

A speed on a shared machine says little by itself: another job on the same cores moves it by tens of percent. So
contenders run interleaved (A B C A B C ...), a ratio is taken inside each round, where both sides met the same
conditions, and its median over the rounds is reported with its range.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RECORDS = HERE / "records"


class FailedError(RuntimeError):
    """A benchmarked command ended with an error or ran past its deadline."""


@contextmanager
def started(
    command: Sequence[str], log: Path, extra: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a command with its output in `log`; it and all processes that come from it are ended on the way out."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "MKL_", "SQUALL_"))}
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(command),
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**environment, **(extra or {})},
            start_new_session=True,
        )
        try:
            yield process
        finally:
            _end(process)


def family(pid: int) -> dict[int, str]:
    """A process and its living descendants, each with its start time (launchers put ranks in sessions of their own)."""
    parents, starts = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] != "Z":
            parents[int(path.parent.name)], starts[int(path.parent.name)] = int(fields[1]), fields[19]
    found, front = set(), {pid}
    while front:
        found |= front
        front = {child for child, parent in parents.items() if parent in front} - found
    return {each: starts[each] for each in found if each in starts}


def _end(process: subprocess.Popen[bytes], patience: float = 10.0) -> None:
    """Asks the leader to end, so that a launcher ends its ranks; what is left of the family after that is killed."""
    known = family(process.pid)
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            known |= family(process.pid)
            process.kill()
            process.wait()
    left = {pid: start for pid, start in known.items() if family(pid).get(pid) == start}
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + patience
    while any(family(pid).get(pid) == start for pid, start in left.items()) and time.monotonic() < deadline:
        time.sleep(0.01)


def run(command: Sequence[str], log: Path, deadline_s: float, extra: Mapping[str, str] | None = None) -> None:
    """Runs a command to its end.

    Raises:
        FailedError: it ended with an error or was not done in time; the message carries the last lines of its output.
    """
    with started(command, log, extra) as process:
        try:
            status = process.wait(timeout=deadline_s)
        except subprocess.TimeoutExpired:
            raise FailedError(f"not done after {deadline_s:.0f} s: {' '.join(command)}\n{tail(log)}") from None
    if status:
        raise FailedError(f"exit status {status}: {' '.join(command)}\n{tail(log)}")


def tail(log: Path, num_lines: int = 60) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-num_lines:])


def machine() -> dict[str, Any]:
    """What the numbers were measured on: processor, cores, versions, and how busy it was before."""
    import torch

    versions = {}
    for package in ("torch", "numpy", "accelerate", "lightning", "squall-train"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": versions,
    }


class Records:
    """A file of JSON lines under `benchmarks/records/`; the first line describes machine and settings."""

    def __init__(self, benchmark: str, settings: Mapping[str, Any], path: Path | None = None) -> None:
        RECORDS.mkdir(exist_ok=True)
        self.path = path or RECORDS / f"{benchmark}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.jsonl"
        about = machine()
        if about["load_before"] > 0.3 * about["cores"]:
            print(
                f"note: the machine is busy (load {about['load_before']}): trust the ratios, not the speeds",
                file=sys.stderr,
            )
        self.write({"kind": "about", "benchmark": benchmark, "settings": dict(settings), **about})

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """All records of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rounds_of(records: Sequence[Mapping[str, Any]], value: str) -> dict[str, dict[int, float]]:
    """contender -> round -> value, in the order in which the contenders first ran; failed runs have no entry."""
    table: dict[str, dict[int, float]] = {}
    for record in records:
        if record["kind"] == "run":
            table.setdefault(record["contender"], {})[record["round"]] = float(record[value])
    return table


def paired_ratios(mine: Mapping[int, float], other: Mapping[int, float]) -> list[float]:
    """mine / other of each round in which both ran."""
    return [mine[number] / other[number] for number in sorted(mine.keys() & other.keys())]


def median_ratio(mine: Mapping[int, float], other: Mapping[int, float]) -> float | None:
    """Median over rounds of the ratio inside each round; None if they never met."""
    ratios = paired_ratios(mine, other)
    return statistics.median(ratios) if ratios else None


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
