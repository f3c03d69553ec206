"""Images per second of one training, side by side: PyTorch DDP plain and tuned, Accelerate, Lightning, Squall.

ResNet-8 of width 24 on CIFAR-10, 2 processes, 256 images an update, the same arrays and augmentation for all (see
`contenders/shared.py`). Every contender runs in processes of its own; the rounds are interleaved; a ratio is taken
inside each round and its median reported.

    python benchmarks/throughput.py --data DIR                  all contenders, 5 rounds
    python benchmarks/throughput.py --data DIR --only ddp_default squall_train_exact --rounds 3
    python benchmarks/throughput.py --show benchmarks/records/throughput-....jsonl
"""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness import HERE, FailedError, Records, median_ratio, paired_ratios, read, rounds_of, run, table


@dataclass(frozen=True)
class Contender:
    """A script of `contenders/`, how its users start it, and its extra arguments."""

    script: str
    launcher: Literal["torchrun", "python"]
    arguments: tuple[str, ...] = ()


CONTENDERS: dict[str, Contender] = {
    "ddp_default": Contender("ddp_default.py", "torchrun"),
    "accelerate_plain": Contender("accelerate_plain.py", "torchrun"),
    "lightning_plain": Contender("lightning_plain.py", "python"),
    "ddp_tuned_whole": Contender("ddp_tuned_whole.py", "torchrun"),
    "ddp_tuned_accumulate": Contender("ddp_tuned_accumulate.py", "torchrun"),
    "squall_train_exact": Contender("squall_train.py", "python", ("--reduction", "exact")),
    "squall_train_fast": Contender("squall_train.py", "python", ("--reduction", "fast")),
    "squall_own_loop_exact": Contender("squall_own_loop.py", "torchrun", ("--reduction", "exact")),
    "squall_own_loop_fast": Contender("squall_own_loop.py", "torchrun", ("--reduction", "fast")),
}

# (who, against whom, what it must reach, what we aim at)
GOALS: list[tuple[str, str, float, float]] = [
    *(
        (f"squall_train_{kind}", other, least, goal)
        for kind in ("exact", "fast")
        for other, least, goal in (
            ("ddp_default", 2.2, 3.0),
            ("accelerate_plain", 2.2, 3.0),
            ("lightning_plain", 2.2, 3.0),
            ("ddp_tuned_whole", 0.95, 1.0),
            ("ddp_tuned_accumulate", 1.0, 1.0),
        )
    ),
    ("squall_own_loop_exact", "squall_train_exact", 0.98, 1.0),
    ("squall_own_loop_fast", "squall_train_fast", 0.98, 1.0),
]


def main() -> int:
    options = _options()
    if options.show:
        print(report(read(options.show)))
        return 0
    unknown = [name for name in options.only if name not in CONTENDERS]
    if unknown or options.data is None:
        print(
            f"throughput: unknown {' '.join(unknown)}; one of {' '.join(CONTENDERS)}"
            if unknown
            else "throughput: give --data",
            file=sys.stderr,
        )
        return 2
    names = options.only or list(CONTENDERS)
    wanted = {
        key: getattr(options, key)
        for key in ("processes", "warmup", "steps", "global_batch_size", "worker_batch_size", "fuse")
    }
    records = Records("throughput", {**wanted, "rounds": options.rounds}, options.out)
    with tempfile.TemporaryDirectory(prefix="squall-throughput-") as scratch:
        data = _unpacked(options.data, Path(scratch))
        for number in range(options.rounds):
            for name in names:
                record = measure(name, number, data, Path(scratch), wanted, options.deadline)
                records.write(record)
                shown = f"{record['images_per_second']:8,.0f} images/s" if record["kind"] == "run" else record["error"]
                print(f"round {number + 1} of {options.rounds}  {name:24s} {shown}", flush=True)
    done = read(records.path)
    print(f"\n{report(done)}\n\nrecords: {records.path}")
    return 0 if all(record["kind"] != "failed" for record in done) else 1


def measure(
    name: str, number: int, data: Path, scratch: Path, wanted: Mapping[str, Any], deadline_s: float
) -> dict[str, Any]:
    """One run of one contender; its slowest process counts."""
    contender = CONTENDERS[name]
    out, log = scratch / f"{name}-{number}.json", scratch / f"{name}-{number}.log"
    command = [sys.executable]
    if contender.launcher == "torchrun":
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(wanted["processes"])]
    command += [
        str(HERE / "contenders" / contender.script),
        "--data",
        str(data),
        "--out",
        str(out),
        *contender.arguments,
    ]
    for key, value in wanted.items():
        if value is not None:
            command += [f"--{key.replace('_', '-')}", str(value)]
    who = {"contender": name, "round": number}
    try:
        run(command, log, deadline_s)
        ranks = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    except (FailedError, FileNotFoundError) as error:
        return {"kind": "failed", **who, "error": str(error)}
    slowest = max(ranks, key=lambda rank: rank["seconds"])
    return {"kind": "run", **who, "images_per_second": slowest["images"] / slowest["seconds"], "ranks": ranks}


def report(records: Sequence[Mapping[str, Any]]) -> str:
    """Two tables: the contenders with their ratios, and the goals."""
    speeds = rounds_of(records, "images_per_second")
    bases = [name for name in ("ddp_default", "ddp_tuned_whole", "ddp_tuned_accumulate") if name in speeds]
    losses = {record["contender"]: record["ranks"][0]["loss"] for record in records if record["kind"] == "run"}
    rows = []
    for name, rounds in speeds.items():
        values = sorted(rounds.values())
        spread = f"{values[0]:,.0f} .. {values[-1]:,.0f}"
        ratios = [_times(median_ratio(rounds, speeds[base])) for base in bases]
        rows.append(
            [name, f"{statistics.median(values):,.0f}", spread, str(len(values)), *ratios, f"{losses[name]:.2f}"]
        )
    header = ["contender", "images/s", "range", "rounds", *(f"/ {base}" for base in bases), "last loss"]
    return f"{table(header, rows)}\n\n{_goals(speeds)}".rstrip()


def _goals(speeds: Mapping[str, Mapping[int, float]]) -> str:
    rows = []
    for name, other, least, goal in GOALS:
        ratios = paired_ratios(speeds.get(name, {}), speeds.get(other, {}))
        if ratios:
            ratio = statistics.median(ratios)
            verdict = "goal" if ratio >= goal else "ok" if ratio >= least else "MISSED"
            spread = f"{min(ratios):.2f} .. {max(ratios):.2f}"
            rows.append([f"{name} / {other}", _times(ratio), spread, f"{least:.2f}x", f"{goal:.2f}x", verdict])
    return table(["ratio, median over rounds", "here", "range", "at least", "goal", ""], rows) if rows else ""


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"


def _unpacked(data: Path, scratch: Path) -> Path:
    """A folder with the set unpacked once, so that no contender spends its start on decompression."""
    source, target = data / "cifar10", scratch / "data" / "cifar10"
    if not source.is_dir():
        raise SystemExit(f"throughput: {data} holds no cifar10; squall data fetch cifar10 --data {data}")
    target.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.name.endswith(".bin.xz"):
            (target / path.stem).write_bytes(lzma.decompress(path.read_bytes()))
        elif path.name.endswith((".bin", ".bin.gz", ".meta.txt")):
            shutil.copy(path, target / path.name)
    return target.parent


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that holds cifar10/")
    parser.add_argument("--only", nargs="+", default=[], help=f"contenders: {' '.join(CONTENDERS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=20, help="updates before the window")
    parser.add_argument("--steps", type=int, default=150, help="updates in the window; with the warm-up at most 195")
    parser.add_argument("--global-batch-size", type=int, default=256)
    parser.add_argument("--worker-batch-size", type=int, default=32)
    parser.add_argument(
        "--fuse", type=int, default=None, help="Squall's contenders: workers a pass (default: the recipe's)"
    )
    parser.add_argument("--deadline", type=float, default=600.0, help="seconds for one run")
    parser.add_argument("--out", type=Path, help="records file (default: benchmarks/records/throughput-TIME.jsonl)")
    parser.add_argument("--show", type=Path, help="print the tables of a records file and end")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
