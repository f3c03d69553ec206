"""Squall's own loop: dropout, noise from its reader, clipping."""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import squall
from tests.verify.transparent.left import leave


class Noisy:
    def __init__(self):
        made = torch.Generator().manual_seed(1)
        self.x = torch.randn(100, 8, generator=made)
        self.kind = self.x[:, :3].argmax(1).tolist()

    def __len__(self):
        return len(self.kind)

    def __getitem__(self, index):
        return self.x[index] + float(np.random.normal(0, 0.3)) + torch.rand(()), self.kind[index]


random.seed(0)
np.random.seed(0)
torch.manual_seed(0)
run = squall.Run(None, epochs=3, global_batch_size=24, worker_batch_size=6, seed=0)
model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
model, optimizer = run.setup(model, optimizer, lr=squall.lr(base=0.1, base_batch_size=24, schedule="cosine"))
losses = []
for step in run.steps(Noisy()):
    for inputs, kinds in step:
        step.backward(F.cross_entropy(model(inputs), kinds, reduction="sum"))
    step.clip_grad_norm_(1.0)
    optimizer.step()
    optimizer.zero_grad()
    losses.append(step.loss)
leave({**model.state_dict()}, losses=losses)
run.finish()
