"""Samples that are dictionaries of unequal lengths: own collate, own step, and a metric over all samples at once.

Is a handwritten digit even? The sample is the list of its dark pixels: 13 to 32 of 64.

squall train examples/dict_batches.py --processes 2
python examples/dict_batches.py
torchrun --standalone --nproc-per-node 2 examples/dict_batches.py
"""

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import squall
from squall.data import sources
from squall.recipe import override
from squall.records import EpochEnded, Record

NOTHING = 64  # stands where a list is shorter than its batch's longest


class DarkPixels:
    """Each digit as {"pixels": places of its dark pixels, "even": 0 or 1}."""

    def __init__(self, split: str) -> None:
        found = sources.load("digits", None, split)
        self.images, self.labels = torch.from_numpy(found.images).flatten(1), found.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = (self.images[index] > 100).nonzero().flatten()
        return {"pixels": pixels, "even": int(self.labels[index] % 2 == 0)}


def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Joins the samples of one virtual worker: pixels (n, longest), even (n,)."""
    lists = [sample["pixels"] for sample in samples]
    pixels = nn.utils.rnn.pad_sequence(lists, batch_first=True, padding_value=NOTHING)
    return {"pixels": pixels, "even": torch.tensor([sample["even"] for sample in samples])}


class Bag(nn.Module):
    """The sum of the pixels' vectors, then two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors = nn.Embedding(NOTHING + 1, 64, padding_idx=NOTHING)
        self.head = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, length) places -> (n, 2) logits."""
        return self.head(self.vectors(pixels).sum(1))


def step(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[squall.Loss, dict[str, Any]]:
    """One virtual worker's samples -> a sum with its count, and metrics that join exactly over all processes."""
    logits, even = model(batch["pixels"]), batch["even"]
    loss = F.cross_entropy(logits, even, reduction="sum")
    return squall.Loss(loss, count=len(even)), {
        "accuracy": squall.mean(logits.argmax(1) == even),
        "auroc": squall.gather(logits, even, squall.metrics.auroc),  # of all samples at once, in data set order
    }


task = squall.Task(model=Bag, step=step, train=DarkPixels("train"), test=DarkPixels("test"), collate=collate)
recipe = squall.Recipe(
    name="dict-batches",
    epochs=15,
    global_batch_size=128,
    worker_batch_size=16,
    optimizer="adamw",
    lr=3e-3,  # taken as written: with Adam's family nothing is scaled
    weight_decay=0.01,
    schedule="cosine",
    warmup_epochs=1,
)


def show(record: Record) -> None:
    """Called with every record of the run, in one process of the job."""
    if isinstance(record, EpochEnded):
        print(f"epoch {record.epoch + 1}: " + ", ".join(f"{name} {value:.4f}" for name, value in record.test.items()))


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--epochs", type=int, default=recipe.epochs)
    arguments.add_argument("--out", help="the run's folder; without one nothing is written")
    given = arguments.parse_args()
    squall.train(task, override(recipe, [f"epochs={given.epochs}"]), out=given.out, sinks=(show,))
