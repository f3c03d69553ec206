"""Squall's first door: `squall train cifar10`, timed from the records that the run itself writes.

An update needs the gradients of all processes, so it is the barrier; the window lies between two of rank 0's records,
whose time is that of the update (evaluation comes later).
python benchmarks/contenders/squall_train.py --data DIR --out FILE [--reduction fast]
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from shared import Settings, settings, write


def command(wanted: Settings, folder: Path) -> list[str]:
    """The command line: the shipped recipe at this minibatch, one epoch of exactly warm-up and window."""
    keys = {
        "epochs": 1,
        "global_batch_size": wanted.global_batch_size,
        "worker_batch_size": wanted.worker_batch_size,
        "reduction": wanted.reduction,
        "lr.warmup_epochs": 0,
        "data.train_limit": wanted.num_images,
        "data.test_limit": 500,
        **({} if wanted.fuse is None else {"fuse": wanted.fuse}),
    }
    run = ["train", "cifar10", "--processes", str(wanted.processes), "--data", str(wanted.data), "--out", str(folder)]
    return [sys.executable, "-m", "squall", *run, "--quiet", *(f"{key}={value}" for key, value in keys.items())]


def main() -> None:
    wanted = settings()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        subprocess.run(command(wanted, folder), check=True)
        lines = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [record for record in map(json.loads, lines) if record["kind"] == "step"]
    if len(steps) != wanted.warmup + wanted.steps:
        raise SystemExit(f"{len(steps)} step records, not {wanted.warmup} + {wanted.steps}")
    first, last = steps[wanted.warmup - 1], steps[-1]
    write(wanted, last["seconds"] - first["seconds"], last["loss"])


if __name__ == "__main__":
    main()
