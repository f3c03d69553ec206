"""Samples are synthesised when asked for; noise is drawn in loader processes; rate by fractions of an epoch."""

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler


class Chirps(Dataset):
    def __init__(self, n, augment=True):
        self.n, self.augment = n, augment

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        kind = int(rng.integers(3))
        t = np.linspace(0, 1, 32)
        wave = np.sin(2 * np.pi * (2 + 3 * kind) * t * (1 + 0.2 * rng.random()) + rng.random()).astype(np.float32)
        wave = torch.from_numpy(wave)
        if self.augment:
            wave = wave * (0.8 + 0.4 * torch.rand(())) + 0.1 * torch.randn(32)
        return wave[None], kind


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv1d(1, 8, 5, padding=2), nn.GroupNorm(2, 8), nn.ReLU(), nn.AvgPool1d(4), nn.Flatten(), nn.Linear(64, 3)
    )
    model = nn.parallel.DistributedDataParallel(model)
    torch.manual_seed(1 + 7919 * dist.get_rank())  # base seed of the loaders
    data = Chirps(640)
    sampler = DistributedSampler(data, seed=99)
    loader = DataLoader(data, batch_size=20, sampler=sampler, num_workers=2)
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    sched = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(opt, T_0=1, T_mult=2)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for i, (x, y) in enumerate(loader):
            loss = nn.functional.cross_entropy(model(x), y)
            opt.zero_grad()
            loss.backward()
            opt.step()
            sched.step(epoch + (i + 1) / len(loader))
        if dist.get_rank() == 0:
            print(epoch, loss.item())
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
