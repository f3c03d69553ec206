"""What a parameter server costs those who compute: a replica's time lost to fetches and pushes, on two cores.

    python benchmarks/replica.py --data DIR [--rounds 3] [--only NAME ...]      # DIR/cifar10; see README.md

`squall train` with the shipped `resnet20` and recipe `cifar10` by Downpour SGD on real Ray, one shard, 32 images a
minibatch, against one process of plain PyTorch with the same network, arithmetic and minibatch. A training's figures
are those of its own records: the first pushes of each replica are left out, and of the rest

    stalled    seconds that computing stood still for fetches and pushes (and leases) / seconds from a unit's first
               minibatch to its last answer
    images/s   of all replicas together, between the first push that counts and the last
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness

BATCH = 32
WARM_PUSHES = 5  # of each replica
WARM_MINIBATCHES = 20
PLAIN = "torch, 1 thread"


@dataclass(frozen=True)
class Training:
    """Downpour SGD: so many replicas, so many minibatches between fetches, and between pushes."""

    replicas: int
    every: int


@dataclass(frozen=True)
class Plain:
    """PyTorch; threads, or as many as it takes by itself."""

    threads: int | None


CONTENDERS: dict[str, Training | Plain] = {
    PLAIN: Plain(1),
    "torch, its own threads": Plain(None),
    "1 replica, every 4": Training(1, 4),
    "1 replica, every 1": Training(1, 1),
    "2 replicas, every 4": Training(2, 4),
    "2 replicas, every 1": Training(2, 1),
}


def measure(contender: Training | Plain, data: Path, minibatches: int, deadline_s: float) -> dict[str, Any]:
    """One run, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if isinstance(contender, Training):
            harness.run(train(contender, data, folder / "run", minibatches), folder / "log", deadline_s)
            return figures(harness.read(folder / "run" / "records.jsonl"))
        harness.run(plain(contender, data, folder / "out", minibatches), folder / "log", deadline_s)
        found = json.loads((folder / "out").read_text(encoding="utf-8"))
        return {"images_per_second": found["images"] / found["seconds"]}


def train(training: Training, data: Path, out: Path, minibatches: int) -> list[str]:
    keys = {
        "strategy": "downpour",
        "model.name": "resnet20",
        "model.width": 16,
        "momentum": 0,
        "nesterov": "false",
        "lr.base": 0.01,
        "lr.warmup_epochs": 0,
        "epochs": 1,
        "data.train_limit": (WARM_MINIBATCHES + minibatches) * BATCH * training.replicas,
        "data.test_limit": 100,
        "downpour.replicas": training.replicas,
        "downpour.shards": 1,
        "downpour.fetch_every": training.every,
        "downpour.push_every": training.every,
    }
    options = ["--data", str(data), "--out", str(out), "--quiet"]
    changes = [f"{key}={value}" for key, value in keys.items()]
    return [sys.executable, "-m", "squall", "train", "cifar10", *options, *changes]


def plain(contender: Plain, data: Path, out: Path, minibatches: int) -> list[str]:
    options = {
        "--data": data,
        "--out": out,
        "--processes": 1,
        "--warmup": WARM_MINIBATCHES,
        "--steps": minibatches,
        "--global-batch-size": BATCH,
        **({"--threads": contender.threads} if contender.threads else {}),
    }
    words = [word for key, value in options.items() for word in (key, str(value))]
    return [sys.executable, str(harness.HERE / "contenders" / "torch_plain.py"), *words]


def figures(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Of a training's records."""
    pushes = [record for record in records if record["kind"] == "push"]
    counted, seen = [], dict.fromkeys({push["replica"] for push in pushes}, 0)
    for push in pushes:
        if min(seen.values()) >= WARM_PUSHES:  # all of them are at work
            counted.append(push)
        seen[push["replica"]] += 1
    first, last = counted[0], counted[-1]
    return {
        "images_per_second": sum(push["samples"] for push in counted[1:]) / (last["seconds"] - first["seconds"]),
        "stalled": sum(push["stalled"] for push in counted) / sum(push["took"] for push in counted),
        "staleness": statistics.mean(push["staleness"][0] for push in counted),
        "pushes": len(counted),
    }


def show(path: Path) -> None:
    """The table: medians over the rounds, and images/s against one thread of PyTorch's inside each round."""
    records = [record for record in harness.read(path) if record["kind"] == "run"]
    speeds = harness.rounds_of(records, "images_per_second")
    rows = []
    for name, by_round in speeds.items():
        mine = [record for record in records if record["contender"] == name]
        ratio = harness.median_ratio(by_round, speeds.get(PLAIN, {}))
        row = [name, f"{statistics.median(by_round.values()):,.0f}", f"{ratio:.2f}x" if ratio else ""]
        if "stalled" in mine[0]:
            stalled = [100 * record["stalled"] for record in mine]
            staleness = statistics.median(record["staleness"] for record in mine)
            row += [f"{statistics.median(stalled):.1f} %", f"{max(stalled):.1f} %", f"{staleness:.2f}"]
        rows.append(row + [""] * (6 - len(row)))
    print(harness.table(["", "images/s", f"of {PLAIN}", "stalled", "at most", "staleness"], rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that holds cifar10/")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minibatches", type=int, default=400, help="of each replica")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--deadline", type=float, default=600.0, help="seconds of one run")
    parser.add_argument("--show", type=Path, help="prints the table of an old record")
    given = parser.parse_args()
    if given.show:
        show(given.show)
        return
    if given.data is None:
        parser.error("--data is needed")
    settings = {"rounds": given.rounds, "minibatches": given.minibatches, "contenders": given.only}
    records = harness.Records("replica", settings)
    for turn in range(given.rounds):
        for name in given.only:
            found = measure(CONTENDERS[name], given.data.resolve(), given.minibatches, given.deadline)
            records.write({"kind": "run", "contender": name, "round": turn, **found})
            print(f"round {turn}, {name}: {found}", file=sys.stderr)
    show(records.path)
    print(f"\nrecords: {records.path}")


if __name__ == "__main__":
    main()
