"""Downpour on real processes against synchronous SGD, with a replica and a shard killed on the way.

Fashion-MNIST, 4 x 256 sigmoid units, Adagrad, minibatches of 32, 10 epochs. The synchronous run takes the same 18,750
minibatches one after the other. The Downpour run has 2 replicas and 1 shard on Ray; when three tenths of its pushes are
settled replica-1 is killed with SIGKILL, at six tenths the shard, which comes back with its newest snapshot.

    python benchmarks/downpour_real.py --data DIR [--seeds 1 2 3] [--epochs 10]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

SQUALL = [sys.executable, "-m", "squall", "train", "fashion-acoustic", "--quiet"]
KILLS = ((0.3, "replica-1"), (0.6, "shard-0"))


def sync(data: Path, out: Path, seed: int, epochs: int) -> dict[str, Any]:
    """The same minibatches, one after the other."""
    given = ["strategy=sync", "global_batch_size=32", f"seed={seed}", f"epochs={epochs}", "--processes=1"]
    subprocess.run([*SQUALL, *given, f"--data={data}", f"--out={out}"], check=True, stdout=subprocess.DEVNULL)
    return result(out)


def downpour(data: Path, out: Path, seed: int, epochs: int) -> dict[str, Any]:
    """Two replicas and a shard; each kind is killed once."""
    given = [f"seed={seed}", f"epochs={epochs}", f"--data={data}", f"--out={out}"]
    run = subprocess.Popen([*SQUALL, *given], stdout=subprocess.DEVNULL)
    total = 60_000 // 32 * epochs
    for share, role in KILLS:
        while pushes(out) < share * total and run.poll() is None:
            time.sleep(0.1)
        os.kill(process(out, role), signal.SIGKILL)
    if run.wait():
        raise RuntimeError(f"the run ended with status {run.returncode}")
    return result(out)


def pushes(out: Path) -> int:
    """How many are settled."""
    with suppress(OSError):
        return (out / "records.jsonl").read_text(encoding="utf-8").count('"kind": "push"')
    return 0


def process(out: Path, role: str) -> int:
    """The process that writes a role's log."""
    log = str((out / "logs" / f"{role}.log").absolute())
    for entry in os.scandir("/proc"):
        with suppress(OSError):
            if entry.name.isdigit() and str(Path(entry.path, "fd", "1").readlink()) == log:
                return int(entry.name)
    raise RuntimeError(f"no process writes {log}")


def result(out: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((out / "result.json").read_text(encoding="utf-8"))
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=10)
    given = parser.parse_args()
    accuracies: dict[str, list[float]] = {"sync": [], "downpour": []}
    with tempfile.TemporaryDirectory() as folder:
        for seed in given.seeds:
            for name, train in (("sync", sync), ("downpour", downpour)):
                values = train(given.data, Path(folder) / f"{name}-{seed}", seed, given.epochs)
                accuracies[name].append(100 * values["test_accuracy"])
                more = f"  {values['minibatches']['shards']}" if name == "downpour" else ""
                print(
                    f"seed {seed}  {name:<9} {accuracies[name][-1]:.2f} %  {values['seconds']:.0f} s{more}", flush=True
                )
    for name, found in accuracies.items():
        spread = f" +- {statistics.stdev(found):.2f}" if len(found) > 2 else ""
        print(f"{name:<9} {statistics.fmean(found):.2f}{spread} %  (n = {len(found)})")


if __name__ == "__main__":
    main()
