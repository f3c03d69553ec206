"""What Squall's book-keeping costs a step: records, the split of time, votes, progress on a terminal.

    python benchmarks/overhead.py [--steps 1200]

In one process, every other step runs without it (the calls are taken out), and the processor time of both kinds is
compared, step by step, so that a drift of the machine falls on both. The digits' recipe is the hardest case that is
shipped: its steps take some milliseconds; those of cifar10 take ten times as long.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import squall
from squall.cli.header import Words
from squall.cli.terminal import Terminal
from squall.data import sources
from squall.model import build
from squall.recipe import load
from squall.run.sums import VOTES

WARM = 60  # steps: imports, memory, kernels


class FakeTerminal(io.StringIO):
    """Takes what a terminal takes: the bar is drawn."""

    def isatty(self) -> bool:
        return True


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1200)
    given = parser.parse_args()
    found = {
        "digits (resnet8, 8x8, 128 = 8 x 16)": measure(given.steps, 8, 16, 16),
        "cifar10 (resnet8, 32x32, 256 = 8 x 32)": measure(given.steps // 8, 32, 24, 32),
    }
    print(json.dumps(found, indent=2))


def measure(num_steps: int, size: int, width: int, worker: int) -> dict[str, float]:
    """Processor seconds of a step with and without the book-keeping, and their difference as a share."""
    torch.set_num_threads(1)
    total = 8 * worker
    inputs = torch.randn(1024, 3, size, size)
    if size == 8:
        inputs = torch.from_numpy(sources.load("digits", None, "train").images).reshape(-1, 1, 8, 8).float() / 16
    inputs = inputs[: len(inputs) // total * total]
    data = torch.utils.data.TensorDataset(inputs, torch.arange(len(inputs)) % 10)
    sink = Terminal(load("digits"), Words("data", "model", "images"), version="", next_line="", out=FakeTerminal())
    with tempfile.TemporaryDirectory() as folder:
        epochs = -(-num_steps * total // len(inputs)) + 1
        run = squall.Run(
            Path(folder) / "run",
            epochs=epochs,
            global_batch_size=total,
            worker_batch_size=worker,
            sinks=(sink,),
            checkpoint="never",
        )
        model = build("resnet8", {"num_classes": 10, "in_channels": inputs.shape[1], "width": width})
        run.setup(model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9))
        times = _times(run, model, data, num_steps)
        run.close()
    pairs = list(zip(times[True], times[False], strict=False))
    without = statistics.median(times[False])
    share = statistics.median(a - b for a, b in pairs) / without
    error = 1.25 * statistics.stdev(a - b for a, b in pairs) / len(pairs) ** 0.5 / without  # of a median
    rare = (statistics.fmean(times[True]) - statistics.fmean(times[False])) / without
    return {"without_s": without, "share": share, "share_error": error, "share_of_means": rare, "pairs": len(pairs)}


def _times(run: squall.Run, model: nn.Module, data: Any, num_steps: int) -> dict[bool, list[float]]:
    note_step, votes = run.book.note_step, run.saver.votes
    end_step, end_epoch, hear = run.saver.end_step, run.book.end_epoch, run.saver.hear
    times: dict[bool, list[float]] = {True: [], False: []}
    before, kind = 0.0, True
    stepper = run.stepper
    assert stepper is not None
    for at, step in enumerate(run.steps(data), 1):
        now = time.process_time()
        if at > WARM:
            times[kind].append(now - before)
        if at == num_steps:
            break
        kind = not kind
        book: Any = run.book
        saver: Any = run.saver
        book.note_step = note_step if kind else lambda step: None
        book.end_epoch = end_epoch if kind else lambda *_: None
        saver.end_step = end_step if kind else lambda *_: None
        saver.hear = hear if kind else lambda votes: None
        stepper.votes = votes if kind else lambda: (0.0,) * len(VOTES)
        before = time.process_time()
        for images, labels in step:
            step.backward(F.cross_entropy(model(images), labels, reduction="sum"))
        run.optimizer.step()
    return times


if __name__ == "__main__":
    main()
