"""A task of your own: model, loss, data. It trains in three ways, and all of them end with the same bits.

squall train examples/digits_task.py --processes 2
python examples/digits_task.py
torchrun --standalone --nproc-per-node 2 examples/digits_task.py
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn

import squall
from squall.data import sources
from squall.recipe import override
from squall.records import EpochEnded, Record


class Digits:
    """1,797 handwritten digits as any data set holds its samples: `len` and `[index]`."""

    def __init__(self, split: str, *, shifted: bool) -> None:
        found = sources.load("digits", None, split)
        self.images = torch.from_numpy(found.images).permute(0, 3, 1, 2) / 255
        self.labels = found.labels
        self.shifted = shifted

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = self.images[index]  # (1, 8, 8)
        if self.shifted:  # any generator may be used: each is seeded by (seed, epoch, index) before the call
            rows, columns = torch.randint(-1, 2, (2,)).tolist()
            image = image.roll((rows, columns), dims=(1, 2))
        return image, int(self.labels[index])


def model() -> nn.Module:
    """Called once a process."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.2), nn.Linear(256, 10)),
    )


task = squall.Task(
    model=model,
    loss=F.cross_entropy,
    train=Digits("train", shifted=True),
    test=Digits("test", shifted=False),
)
recipe = squall.Recipe(
    name="digits-task",
    epochs=15,
    global_batch_size=128,  # what the optimiser sees
    worker_batch_size=16,  # what batch normalisation sees
    lr=0.1,
    momentum=0.9,
    nesterov=True,
    weight_decay=5e-4,
    schedule="cosine",
)


def show(record: Record) -> None:
    """Called with every record of the run, in one process of the job."""
    if isinstance(record, EpochEnded):
        print(f"epoch {record.epoch + 1}: loss {record.train_loss:.4f}, test accuracy {record.test['accuracy']:.2%}")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--epochs", type=int, default=recipe.epochs)
    arguments.add_argument("--out", help="the run's folder; without one nothing is written")
    given = arguments.parse_args()
    squall.train(task, override(recipe, [f"epochs={given.epochs}"]), out=given.out, sinks=(show,))
