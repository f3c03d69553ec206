"""What a checkpoint costs: how long training stands still for it, and how fast it is written, for ResNet-50.

    python benchmarks/checkpoint.py [--rounds 7] [--folder DIR]

Two questions, two answers. `blocked`: two processes train ResNet-50 (25.6 million parameters, with momentum) and save
every second step; the pause of a save is held against the median step. `writing`: one process saves the same state
while nothing else runs; between the saves the same number of bytes is written to the same folder, sequentially, with
one fsync at the end. Both in turns, medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import squall
from squall.model import build

TASK = """\
import squall, torch
import torch.nn.functional as F
from squall.model import build

generator = torch.Generator().manual_seed(0)
images = torch.randn(64, 3, 96, 96, generator=generator)
data = torch.utils.data.TensorDataset(images, torch.arange(64) % 10)
task = squall.Task(model=lambda: build("resnet50", {"num_classes": 1000}), loss=F.cross_entropy, train=data)
recipe = squall.Recipe(
    epochs=6, global_batch_size=16, worker_batch_size=8, lr=0.01, momentum=0.9, checkpoint={"every": "2step"}
)
"""


def blocked(folder: Path) -> dict[str, Any]:
    """Two processes that save every second step."""
    (folder / "task.py").write_text(TASK)
    out = folder / "run"
    command = [sys.executable, "-m", "squall", "train", str(folder / "task.py"), "--processes", "2", "--quiet"]
    subprocess.run([*command, "--out", str(out)], check=True, stdout=subprocess.DEVNULL)
    sessions = [json.loads(line) for line in (out / "sessions.jsonl").read_text().splitlines()]
    steps = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    saves = [record for record in sessions if record["kind"] == "saved"][1:]  # the first one makes the memory
    times = [sum(record["spent"].values()) - record["spent"]["save"] for record in steps if record["kind"] == "step"]
    return {
        "step_s": statistics.median(times),
        "blocked_s": statistics.median(save["blocked"] for save in saves),
        "blocked_most_s": max(save["blocked"] for save in saves),
        "written_s": statistics.median(save["seconds"] for save in saves),
        "megabytes": saves[-1]["num_bytes"] / 1e6,
        "saves": len(saves),
    }


def writing(folder: Path, rounds: int) -> dict[str, Any]:
    """One process that saves and nothing else, in turns with a plain write."""
    run = squall.Run(folder / "alone", epochs=rounds + 2, global_batch_size=4, worker_batch_size=4, checkpoint="1step")
    model = build("resnet50", {"num_classes": 1000})
    run.setup(model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9))
    data = [(torch.randn(3, 64, 64), index) for index in range(4)]
    saves, plain, size = [], [], 0
    for step in run.steps(data):
        run.saver.finish()  # that of the step before
        if step.index > 1:  # the first one makes the memory
            records = map(json.loads, (folder / "alone" / "sessions.jsonl").read_text().splitlines())
            record = [record for record in records if record["kind"] == "saved"][-1]
            size = record["num_bytes"]
            saves.append(record["seconds"])
            while list((folder / "alone" / "checkpoints").glob(".*")):  # an older one is being removed
                time.sleep(0.01)
            plain.append(plain_write(folder / "plain", size))
        for images, labels in step:
            step.backward(F.cross_entropy(model(images), labels, reduction="sum"))
        run.optimizer.step()
    run.close()
    return {
        "save_s": statistics.median(saves),
        "plain_s": statistics.median(plain),
        "ratio": statistics.median(b / a for a, b in zip(saves, plain, strict=True)),
        "ratios": [round(b / a, 3) for a, b in zip(saves, plain, strict=True)],
        "megabytes": size / 1e6,
        "plain_megabytes_per_s": size / 1e6 / statistics.median(plain),
    }


def plain_write(path: Path, size: int) -> float:
    """Seconds of one sequential write with fsync."""
    data = memoryview(os.urandom(1 << 20) * (size // (1 << 20)) + os.urandom(size % (1 << 20)))  # no zero pages
    started = time.perf_counter()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    while data:
        data = data[os.write(file, data[: 4 << 20]) :]
    os.fsync(file)
    os.close(file)
    seconds = time.perf_counter() - started
    path.unlink()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk that is meant")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        found = {"writing": writing(Path(folder), given.rounds), "blocked": blocked(Path(folder))}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
