"""Fine-tune what a run has learned: its network with another head, the lower layers frozen.

squall train digits --out runs/base
python examples/finetune.py runs/base
torchrun --standalone --nproc-per-node 2 examples/finetune.py runs/base
"""

import argparse
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

import squall
from squall.data import sources
from squall.model.weights import freeze
from squall.recipe import override
from squall.records import EpochEnded, Record


class EvenOdd:
    """The digits again, in another question: 1 where the digit is even."""

    def __init__(self, split: str) -> None:
        found = sources.load("digits", None, split)
        self.images = torch.from_numpy(found.images).permute(0, 3, 1, 2) / 255
        self.even = found.labels % 2 == 0

    def __len__(self) -> int:
        return len(self.even)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return (self.images[index] - 0.3052) / 0.3758, int(self.even[index])  # as the run's recipe normalises


def model(run: str) -> nn.Module:
    """The run's network, a head for two classes; its first layers stay as they are."""
    network = squall.load(run)  # ready to be used; so .train() before training goes on
    network.fc = nn.Linear(network.fc.in_features, 2)
    freeze(network, ["conv1", "bn1", "layer1", "layer2"])
    return network.train()


recipe = squall.Recipe(
    name="finetune",
    epochs=5,
    global_batch_size=128,
    worker_batch_size=16,
    momentum=0.9,
    lr=0.02,
    groups=[{"match": "fc.*", "lr_scale": 5.0}],  # the new head learns faster
    schedule="cosine",
)


def show(record: Record) -> None:
    """Called with every record of the run, in one process of the job."""
    if isinstance(record, EpochEnded):
        print(f"epoch {record.epoch + 1}: loss {record.train_loss:.4f}, test accuracy {record.test['accuracy']:.2%}")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("run", help="folder of a run of the recipe digits")
    arguments.add_argument("--epochs", type=int, default=recipe.epochs)
    arguments.add_argument("--out", help="the run's folder; without one nothing is written")
    given = arguments.parse_args()
    task = squall.Task(
        model=partial(model, given.run), loss=F.cross_entropy, train=EvenOdd("train"), test=EvenOdd("test")
    )
    squall.train(task, override(recipe, [f"epochs={given.epochs}"]), out=given.out, sinks=(show,))
