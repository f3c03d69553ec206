"""Sandblaster on real processes against synchronous SGD: Fashion-MNIST, 4 x 256 sigmoid units.

SGD takes minibatches of 32 one after the other, 10 epochs. Sandblaster has 2 replicas and 1 shard on Ray and evaluates
the whole set up to `--evaluations` times; a task's budget in passes is thus many times SGD's, as batch methods need it.

    python benchmarks/sandblaster_real.py --data DIR [--seeds 1 2 3] [--epochs 10] [--evaluations 150]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness

SQUALL = [sys.executable, "-m", "squall", "train", "fashion-acoustic", "--quiet"]


def keys(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """What a contender changes of the shipped recipe."""
    if name == "sgd":
        rule = {"optimizer.name": "sgd", "lr.base": given.lr, "global_batch_size": 32, "epochs": given.epochs}
        return {"strategy": "sync", **rule}
    own = {"sandblaster.replicas": 2, "sandblaster.unit": 4, "sandblaster.tolerance_gradient": 1e-4}
    rest = {"worker_batch_size": 500, "epochs": given.evaluations, "optimizer.weight_decay": given.weight_decay}
    return {"strategy": "sandblaster", **own, **rest, "checkpoint.every": "1h"}


def train(name: str, seed: int, out: Path, given: argparse.Namespace) -> dict[str, Any]:
    """One training; its result, and the best test accuracy on the way."""
    changes = [f"{key}={value}" for key, value in keys(name, given).items()]
    flags = ["--processes=1"] if name == "sgd" else []
    command = [*SQUALL, *changes, *flags, f"seed={seed}", f"--data={given.data}", f"--out={out}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads((out / "result.json").read_text(encoding="utf-8"))
    told = [record["test"]["accuracy"] for record in harness.read(out / "records.jsonl") if record["kind"] == "epoch"]
    return {"accuracy": found["test_accuracy"], "seconds": found["seconds"], "course": told}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--evaluations", type=int, default=150)
    parser.add_argument("--lr", type=float, default=0.3)
    parser.add_argument("--weight-decay", type=float, default=1e-5)
    given = parser.parse_args()
    records = harness.Records("sandblaster-real", {**vars(given), "data": ""})
    accuracies: dict[str, list[float]] = {"sgd": [], "sandblaster": []}
    with tempfile.TemporaryDirectory() as folder:
        for seed in given.seeds:
            for name, found in accuracies.items():
                values = train(name, seed, Path(folder) / f"{name}-{seed}", given)
                records.write({"kind": "run", "contender": name, "seed": seed, **values})
                found.append(100 * values["accuracy"])
                print(f"seed {seed}  {name:<11} {found[-1]:.2f} %  {values['seconds']:.0f} s", flush=True)
    for name, found in accuracies.items():
        spread = f" +- {statistics.stdev(found):.2f}" if len(found) > 2 else ""
        print(f"{name:<11} {statistics.fmean(found):.2f}{spread} %  (n = {len(found)})")
    print(f"\nrecords: {records.path}")


if __name__ == "__main__":
    main()
