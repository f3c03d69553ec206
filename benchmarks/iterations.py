"""Seconds of an iteration of L-BFGS on ten million parameters: Sandblaster against torch.optim.LBFGS.

    python benchmarks/iterations.py [--samples 2000] [--iterations 12] [--rounds 5] [--only NAME ...]

Each contender minimises the same function from the same weights, with the same history, strong Wolfe steps, portions
and one thread a process: torch in one process; Sandblaster on real Ray with one shard and one or two replicas. The
first three iterations are left out (a short history, warm caches). Line searches differ, so seconds of an evaluation
of the batch stand beside those of an iteration.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness

PLAIN = "torch.optim.LBFGS"
REPLICAS = {PLAIN: 0, "Sandblaster, 1 replica": 1, "Sandblaster, 2 replicas": 2}
WARM = 3


def measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """One minimisation, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        extra = {"SAMPLES": str(given.samples), "PYTHONPATH": str(harness.HERE / "contenders")}
        if REPLICAS[name]:
            harness.run(train(REPLICAS[name], folder / "run", given), folder / "log", 900, {**os.environ, **extra})
            return of_records(harness.read(folder / "run" / "records.jsonl"))
        harness.run(plain(folder / "out", given), folder / "log", 900)
        return of_closures(json.loads((folder / "out").read_text(encoding="utf-8")))


def train(replicas: int, out: Path, given: argparse.Namespace) -> list[str]:
    keys = {
        "strategy": "sandblaster",
        "sandblaster.replicas": replicas,
        "sandblaster.unit": given.unit,
        "sandblaster.history": given.history,
        "sandblaster.tolerance_gradient": 0,
        "worker_batch_size": given.portion,
        "epochs": 2 * given.iterations,
        "checkpoint.every": "1h",
    }
    changes = [f"{key}={value}" for key, value in keys.items()]
    task = str(harness.HERE / "contenders" / "wide_task.py")
    return [sys.executable, "-m", "squall", "train", task, "--out", str(out), "--quiet", *changes]


def plain(out: Path, given: argparse.Namespace) -> list[str]:
    options = {name: getattr(given, name) for name in ("samples", "portion", "iterations", "history")}
    words = [word for name, value in {"out": out, **options}.items() for word in (f"--{name}", str(value))]
    return [sys.executable, str(harness.HERE / "contenders" / "torch_lbfgs.py"), *words]


def of_records(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Of a training's iterations."""
    told = [record for record in records if record["kind"] == "epoch"]
    first, last = told[WARM], told[-1]
    seconds = last["seconds"] - first["seconds"]
    return figures(seconds, last["epoch"] - first["epoch"], last["step"] - first["step"], last["train_loss"])


def of_closures(evaluations: list[dict[str, Any]]) -> dict[str, Any]:
    """Of torch's calls: an iteration lasts from its first evaluation to the next one's."""
    begins = {}
    for number, each in enumerate(evaluations):
        begins.setdefault(each["iteration"], (number, each["seconds"]))
    (first, began), (last, ended) = begins[WARM + 1], begins[max(begins)]
    iterations = max(begins) - WARM - 1
    return figures(ended - began, iterations, last - first, evaluations[-2]["loss"])


def figures(seconds: float, iterations: int, evaluations: int, loss: float) -> dict[str, Any]:
    return {"iteration": seconds / iterations, "evaluation": seconds / evaluations, "loss": loss}


def show(path: Path) -> None:
    """Medians, and how many times as fast as torch inside each round."""
    records = [record for record in harness.read(path) if record["kind"] == "run"]
    rows = []
    for name in REPLICAS:
        mine = [record for record in records if record["contender"] == name]
        if not mine:
            continue
        row = [name]
        for what in ("iteration", "evaluation"):
            by_round = harness.rounds_of(records, what)
            ratio = harness.median_ratio(by_round.get(PLAIN, {}), by_round[name])
            row += [f"{statistics.median(by_round[name].values()):.3f}", f"{ratio:.2f}x" if ratio else ""]
        rows.append([*row, f"{statistics.median(record['loss'] for record in mine):.4f}"])
    print(harness.table(["seconds of", "an iteration", "", "an evaluation", "", "last loss"], rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("samples", 2000), ("portion", 100), ("unit", 2), ("history", 10), ("iterations", 12)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=REPLICAS, default=list(REPLICAS))
    given = parser.parse_args()
    records = harness.Records("iterations", vars(given))
    for index in range(given.rounds):
        for name in given.only:
            records.write({"kind": "run", "round": index, "contender": name, **measure(name, given)})
    show(records.path)
    print(f"\nrecords: {records.path}")


if __name__ == "__main__":
    main()
