"""What all contenders have in common: settings, the network, the images in memory, the stopwatch.

No contender may win or lose by its data loading or by what is timed, so these parts are the same for all peers: images
as one uint8 array in memory, a whole batch fetched by one index operation (`__getitems__`), cropped, flipped and
normalised as one batch in `collate_fn`. A barrier stands at both ends of the timed window.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import TensorDataset

Batch = tuple[torch.Tensor, torch.Tensor]

_RECORD = 1 + 3 * 32 * 32
_MEAN, _STD = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
_SCALE, _SHIFT = 1 / (255 * _STD), -_MEAN / _STD


@dataclass(frozen=True)
class Settings:
    """What `throughput.py` asks each contender to do."""

    data: Path  # folder that holds cifar10/
    out: Path  # where the measurement goes, one JSON line a process
    processes: int
    warmup: int  # updates before the window
    steps: int  # updates in the window
    global_batch_size: int
    worker_batch_size: int
    reduction: str  # squall's contenders only
    fuse: int | None  # squall's contenders only; None: as the recipe says

    @property
    def batch_size(self) -> int:
        """Images of one process in one update."""
        return self.global_batch_size // self.processes

    @property
    def num_images(self) -> int:
        """Size of the training set: one epoch is exactly the warm-up and the window."""
        return (self.warmup + self.steps) * self.global_batch_size


def arguments() -> argparse.ArgumentParser:
    """What every contender is told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--global-batch-size", type=int, default=256)
    parser.add_argument("--worker-batch-size", type=int, default=32)
    parser.add_argument("--reduction", choices=("exact", "fast"), default="exact")
    parser.add_argument("--fuse", type=int, default=None)
    return parser


def settings() -> Settings:
    """Reads the command line."""
    return Settings(**vars(arguments().parse_args()))


def network() -> nn.Module:
    """ResNet-8 of width 24 for 32 x 32 images, the same initial weights in every process."""
    from squall.model import build

    torch.manual_seed(0)
    return build("resnet8", {"width": 24, "num_classes": 10})


def read_images(data: Path, num_images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first images of CIFAR-10's training set: uint8 (N, 32, 32, 3) and int64 (N,)."""
    if num_images > 50_000:
        raise SystemExit(f"{num_images:,} images asked for: warm-up and window must fit into one epoch of 50,000")
    parts = []
    for number in range(1, 2 + (num_images - 1) // 10_000):
        plain = data / "cifar10" / f"data_batch_{number}.bin"
        content = plain.read_bytes() if plain.exists() else lzma.decompress(plain.with_suffix(".bin.xz").read_bytes())
        parts.append(np.frombuffer(content, dtype=np.uint8).reshape(-1, _RECORD))
    records = np.concatenate(parts)[:num_images]
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return torch.from_numpy(images), torch.from_numpy(records[:, 0].astype(np.int64))


class Images(TensorDataset):
    """Images in memory; the loader fetches a whole batch by one index operation."""

    def __getitems__(self, ids: list[int]) -> Batch:
        rows = torch.tensor(ids)
        images, labels = self.tensors
        return images.index_select(0, rows), labels.index_select(0, rows)


def augment(batch: Batch) -> Batch:
    """`collate_fn`: a random 32 x 32 crop out of 4 pixels of padding, a flip, normalisation; one gather for the batch.

    Arguments:
        batch: uint8 (n, 32, 32, 3) and labels (n,).

    Returns:
        float32 (n, 3, 32, 32), channels-last in memory, and the labels.
    """
    images, labels = batch
    num = len(images)
    padded = nn.functional.pad(images, (0, 0, 4, 4, 4, 4))  # (n, 40, 40, 3)
    top, left = torch.randint(0, 9, (2, num, 1))
    across = torch.arange(32)
    flipped = torch.rand(num, 1) < 0.5
    y = top + across  # (n, 32)
    x = left + torch.where(flipped, 31 - across, across)  # (n, 32)
    index = (torch.arange(num)[:, None, None] * 40 + y[:, :, None]) * 40 + x[:, None, :]
    rows = padded.view(-1, 3).index_select(0, index.view(-1)).view(num * 32, 32 * 3).float()
    inputs = rows.mul_(_SCALE.repeat(32)).add_(_SHIFT.repeat(32)).view(num, 32, 32, 3)
    return inputs.permute(0, 3, 1, 2), labels


def augment_nchw(batch: Batch) -> Batch:
    """As `augment`, in PyTorch's default memory format."""
    inputs, labels = augment(batch)
    return inputs.contiguous(), labels


class Stopwatch:
    """Times a window of updates in this process; call `updated` after each one."""

    def __init__(self, wanted: Settings) -> None:
        self._wanted = wanted
        self._done = 0
        self._begin = self._begin_cpu = 0.0

    def updated(self, loss: torch.Tensor | float, *, barrier: bool = True) -> None:
        """Counts an update; at the window's ends waits for the other processes, at its end writes the measurement.

        Arguments:
            loss: of this update; written down so that a contender that trains nothing is noticed.
            barrier: false where no default process group exists and the update itself made the processes meet.
        """
        self._done += 1
        if self._done not in (self._wanted.warmup, self._wanted.warmup + self._wanted.steps):
            return
        if barrier:
            dist.barrier()
        now = time.perf_counter()
        if self._done == self._wanted.warmup:
            self._begin, self._begin_cpu = now, time.process_time()
        else:
            cpu_seconds = time.process_time() - self._begin_cpu
            write(
                self._wanted, now - self._begin, float(loss), threads=torch.get_num_threads(), cpu_seconds=cpu_seconds
            )


def write(wanted: Settings, seconds: float, loss: float, **more: float) -> None:
    """Appends one process's measurement."""
    images = wanted.steps * wanted.global_batch_size
    line = {"images": images, "seconds": seconds, "loss": loss, "rank": os.environ.get("RANK"), **more}
    with wanted.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
