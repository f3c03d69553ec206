"""A loop of your own: the usual five lines, with Squall's minibatch, order, reduction and ledger below them.

python examples/own_loop.py
torchrun --standalone --nproc-per-node 2 examples/own_loop.py        the same weights, bit for bit
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

import squall
from squall.data import sources


def digits(split: str) -> TensorDataset:
    """Images (N, 1, 8, 8) in 0 .. 1 and labels (N,)."""
    found = sources.load("digits", None, split)
    images = torch.from_numpy(found.images).permute(0, 3, 1, 2) / 255
    return TensorDataset(images, torch.from_numpy(found.labels))


def main() -> None:
    """One training."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--epochs", type=int, default=15)
    arguments.add_argument("--out", help="the run's folder; without one nothing is written")
    given = arguments.parse_args()

    run = squall.Run(given.out, epochs=given.epochs, global_batch_size=128, worker_batch_size=16, seed=0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    rate = squall.lr(base=0.1, base_batch_size=128, schedule="cosine")
    model, optimizer = run.setup(model, optimizer, lr=rate)

    train, test = digits("train"), digits("test")
    for step in run.steps(train):  # one update each
        for images, labels in step:  # this process's virtual workers, 16 samples each
            loss = F.cross_entropy(model(images), labels, reduction="sum")  # a sum, never a mean
            step.backward(loss)
        step.clip_grad_norm_(1.0)  # after the reduction: the norm of the whole minibatch's gradient
        optimizer.step()
        optimizer.zero_grad()
        if step.ends_epoch:
            hits = run.evaluate(model, test, lambda out, labels: out.argmax(1) == labels)
            run.log(test={"accuracy": hits.mean()})
            if run.is_main:
                print(f"epoch {step.epoch + 1}: last loss {step.loss:.4f}, test accuracy {hits.mean():.2%}")
    result = run.finish()  # ledger, weights, result.json
    if run.is_main:
        print("weights sha256", result.values["weights_sha256"])


if __name__ == "__main__":
    main()
