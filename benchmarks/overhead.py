"""What Squall's book-keeping costs a step: records, the split of time, votes, progress on a terminal, events.

    python benchmarks/overhead.py [--steps 1200]

In one process, every other step runs without it (the calls are taken out), and the processor time of both kinds is
compared, step by step, so that a drift of the machine falls on both. The digits' recipe is the hardest case that is
shipped: its steps are the shortest, and an epoch has 11 of them. Before the last step of each epoch the state is copied
too, so that an evaluation can be left at once; that belongs to saving, and is told apart (`copy_share`).

    share           median of the differences within pairs of steps: what every step pays
    share_of_means  what is rare included: a bar twice a second, an event a second, the end of an epoch
    calls_share     the same, by timing the calls themselves: less noise, without what they push out of the caches
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
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

WARM = 60  # steps, which do not count: memory, kernels, imports (once, 0.2 s for tensorboard's)


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
        times, calls, copies = _times(run, model, data, num_steps)
        run.close()
    pairs = list(zip(times[True], times[False], strict=False))
    without = statistics.median(times[False])
    share = statistics.median(a - b for a, b in pairs) / without
    error = 1.25 * statistics.stdev(a - b for a, b in pairs) / len(pairs) ** 0.5 / without  # of a median
    rare = (statistics.fmean(times[True]) - statistics.fmean(times[False])) / without
    return {
        "without_s": without,
        "share": share,
        "share_error": error,
        "share_of_means": rare,
        "calls_share": (sum(calls) - sum(copies)) / sum(times[False]),  # both on every other step
        "copy_share": sum(copies) / sum(times[False]),
        "pairs": len(pairs),
    }


def _times(
    run: squall.Run, model: nn.Module, data: Any, num_steps: int
) -> tuple[dict[bool, list[float]], list[float], list[float]]:
    """Processor seconds of steps with and without the book-keeping, of its calls, and of the copies among them."""
    calls: list[float] = []
    note_step, votes = _timed(run.book.note_step, calls), _timed(run.saver.votes, calls)
    end_step, hear = _timed(run.saver.end_step, calls), _timed(run.saver.hear, calls)
    end_epoch = _timed(run.book.end_epoch, calls)
    times: dict[bool, list[float]] = {True: [], False: []}
    copies: list[float] = []
    run.saver._copy = _timed(run.saver._copy, copies)  # type: ignore[method-assign]
    before, copied, kind = 0.0, 0.0, True
    stepper = run.stepper
    assert stepper is not None
    for at, step in enumerate(run.steps(data), 1):
        now = time.process_time()
        if at == WARM:
            calls.clear()
            copies.clear()
        if at > WARM:
            times[kind].append(now - before - (sum(copies) - copied))
        if at == num_steps:
            break
        kind = not kind
        book: Any = run.book
        saver: Any = run.saver
        book.note_step = note_step if kind else lambda step: None
        book.end_epoch = end_epoch if kind else lambda *_: None
        saver.end_step = end_step if kind else lambda *_: None
        saver.hear = hear if kind else lambda *_: None
        stepper.votes = votes if kind else lambda: (0.0,) * len(VOTES)
        before, copied = time.process_time(), sum(copies)
        for images, labels in step:
            step.backward(F.cross_entropy(model(images), labels, reduction="sum"))
        run.optimizer.step()
    return times, calls, copies


def _timed(call: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    def timed(*arguments: Any) -> Any:
        before = time.process_time()
        try:
            return call(*arguments)
        finally:
            seconds.append(time.process_time() - before)

    return timed


if __name__ == "__main__":
    main()
