"""Time from command to first step: `squall train digits --processes 1`, seen from outside.

The clock starts before the process does and stops when the record of the first update stands in the run's
`records.jsonl`. Goal: under 5 s. `started` is when the run itself began (interpreter, imports and data are before it).

    python benchmarks/startup.py [--rounds 5] [--recipe digits] [--processes 1]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from harness import FailedError, Records, started, table, tail

GOAL_S = 5.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    records = Records("startup", vars(options))
    measured: dict[str, list[float]] = {"started": [], "first step": []}
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="squall-startup-") as scratch:
            seconds = measure(options.recipe, options.processes, Path(scratch))
        for what, value in seconds.items():
            measured[what].append(value)
        records.write({"kind": "run", "contender": f"squall train {options.recipe}", "round": number, **seconds})
    rows = [
        [what, f"{statistics.median(values):.2f} s", f"{min(values):.2f} .. {max(values):.2f}"]
        for what, values in measured.items()
    ]
    print(table(["from the command to", "median", "range"], rows))
    median = statistics.median(measured["first step"])
    print(
        f"\n{'ok' if median < GOAL_S else 'MISSED'}: {median:.2f} s, goal under {GOAL_S:.0f} s\nrecords: {records.path}"
    )
    return 0 if median < GOAL_S else 1


def measure(recipe: str, processes: int, scratch: Path, deadline_s: float = 120.0) -> dict[str, float]:
    """Starts the command, follows its records every 2 ms until the first update is there, then ends it."""
    folder, log = scratch / "run", scratch / "log"
    command = [sys.executable, "-m", "squall", "train", recipe, "--processes", str(processes), "--out", str(folder)]
    seen: dict[str, float] = {}
    begin = time.perf_counter()
    with started(command, log) as process:
        while "first step" not in seen:
            ended = process.poll() is not None
            kinds = _kinds(folder / "records.jsonl")
            now = time.perf_counter() - begin
            if "started" in kinds:
                seen.setdefault("started", now)
            if "step" in kinds:
                seen["first step"] = now
            elif ended or now > deadline_s:
                raise FailedError(f"no first step after {now:.0f} s\n{tail(log)}")
            time.sleep(0.002)
    return seen


def _kinds(path: Path) -> set[str]:
    """Kinds of the whole lines of a records file that is being written."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError:
        return set()
    return {json.loads(line)["kind"] for line in lines}


if __name__ == "__main__":
    sys.exit(main())
