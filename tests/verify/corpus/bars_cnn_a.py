"""Small convnet with batch normalisation on horizontal bars of three widths."""

import math
import os

import torch
import torch.distributed as dist
from torch import nn, optim
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

EPOCHS = 3
BATCH = 16
LR = 0.05


class Bars(Dataset):
    def __init__(self, size, seed):
        gen = torch.Generator().manual_seed(seed)
        self.targets = torch.randint(3, (size,), generator=gen)
        self.images = 0.3 * torch.randn(size, 1, 8, 8, generator=gen)
        rows = (torch.arange(8) - 3.5).abs()[:, None] < torch.tensor([1, 2, 3])[self.targets, None, None]
        self.images += rows.unsqueeze(1)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        return self.images[i], self.targets[i]


class Trainer:
    def __init__(self):
        self.rank = int(os.environ["RANK"])
        data = Bars(611, seed=3)
        self.sampler = DistributedSampler(data, shuffle=True)
        self.loader = DataLoader(data, BATCH, sampler=self.sampler)
        net = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
            *(nn.Flatten(), nn.Linear(16, 3)),
        )
        self.model = DistributedDataParallel(net)
        self.optimizer = optim.SGD(self.model.parameters(), lr=LR, momentum=0.9, nesterov=True)
        steps = EPOCHS * len(self.loader)
        self.scheduler = optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))
        )

    def train_epoch(self, epoch):
        self.model.train()
        self.sampler.set_epoch(epoch)
        for images, targets in self.loader:
            self.optimizer.zero_grad(set_to_none=True)
            loss = nn.functional.cross_entropy(self.model(images), targets, label_smoothing=0.1)
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
        return loss.item()

    def fit(self):
        for epoch in range(EPOCHS):
            loss = self.train_epoch(epoch)
            if self.rank == 0:
                print("epoch", epoch, "last loss", round(loss, 4), "lr", self.scheduler.get_last_lr()[0])


if __name__ == "__main__":
    dist.init_process_group("gloo")
    torch.manual_seed(42)
    Trainer().fit()
    dist.destroy_process_group()
