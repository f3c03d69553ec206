"""DDP with all that draws: dropout, augmentation in loader processes, samplers that draw as they go, checkpointing."""

import os
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset, random_split

from tests.verify.transparent.left import leave


class Noisy(Dataset):
    def __init__(self, size):
        made = torch.Generator().manual_seed(1)
        self.x = torch.randn(size, 8, generator=made)
        self.y = self.x[:, :3].argmax(1)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        noise = torch.rand(8) + random.random() + np.random.rand() + np.random.default_rng(index).random()
        return self.x[index] + 0.1 * noise.float(), self.y[index]


class AsItGoes(Sampler):
    """Draws each batch from the generator that dropout draws from, when it is asked for it."""

    def __len__(self):
        return 7

    def __iter__(self):
        for _ in range(7):
            yield torch.randint(0, 90, (5 + random.randrange(3),)).tolist()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2))
        self.inner = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.ReLU())
        self.norm, self.last = nn.BatchNorm1d(16), nn.Linear(16, 3)

    def forward(self, x, y):
        h = checkpoint(self.inner, self.first(x), use_reentrant=False)
        return checkpoint(self.loss, h, y, use_reentrant=False)  # computed again, with its statistics

    def loss(self, h, y):
        return F.cross_entropy(self.last(self.norm(h)), y)


dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(rank), np.random.seed(rank), random.seed(rank)
train, valid = random_split(Noisy(128), [96, 32])
shuffles = torch.Generator().manual_seed(rank)
loaders = [
    DataLoader(train, batch_sampler=AsItGoes()),
    DataLoader(train, 9, shuffle=True, generator=shuffles, num_workers=2, persistent_workers=True),
    DataLoader(
        TensorDataset(train.dataset.x, train.dataset.y),
        16,
        sampler=torch.utils.data.RandomSampler(range(128), replacement=True, num_samples=40, generator=shuffles),
    ),
]
model = DistributedDataParallel(Net())
optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(1e-2), weight_decay=0.1)
schedule = torch.optim.lr_scheduler.SequentialLR(
    optimizer,
    [
        torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5),
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step),
    ],
    [5],
)
scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=4)
losses = []
for _ in range(3):
    model.train()
    for loader in loaders:
        for count, (x, y) in enumerate(loader):
            if loader is loaders[2] and count == 2:
                break
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(x + 0.1 * torch.randn(8, generator=shuffles), y)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=count % 2 == 0)
            schedule.step()
            losses.append(float(loss))
    model.eval()
    with torch.no_grad():
        losses += [float(model(x, y)) for x, y in DataLoader(valid, 8)]
total = torch.tensor(losses).mean()
dist.all_reduce(total)
assert int(os.environ["RANK"]) == rank
leave(
    model.state_dict(),
    optimizer=optimizer.state_dict(),
    scaler=scaler.state_dict(),
    losses=losses,
    total=total,
    rates=schedule.get_last_lr(),
    shuffles=shuffles.get_state(),
)
dist.destroy_process_group()
