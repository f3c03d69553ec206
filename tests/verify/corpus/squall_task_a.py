"""A task for Squall: digits with a batch-normalised MLP.   torchrun THIS_FILE, or squall train THIS_FILE"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

import squall
from squall.data import sources


def digits(split):
    found = sources.load("digits", None, split)
    return TensorDataset(torch.from_numpy(found.images).flatten(1) / 255, torch.from_numpy(found.labels))


def model():
    return nn.Sequential(nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 10))


task = squall.Task(model=model, loss=F.cross_entropy, train=digits("train"), test=digits("test"))
recipe = squall.Recipe(
    name="digits-mlp",
    epochs=2,
    global_batch_size=96,
    worker_batch_size=12,
    lr=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    schedule="cosine",
)

if __name__ == "__main__":
    result = squall.train(task, recipe)
    print(f"test accuracy {result.test['accuracy']:.2%}")
