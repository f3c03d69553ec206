"""Micro-batches are collected into windows first, so that the last, partial one is weighed rightly."""

import contextlib
import itertools

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def windows(iterable, size):
    it = iter(iterable)
    while chunk := list(itertools.islice(it, size)):
        yield chunk


def checkerboard(n):
    g = torch.Generator().manual_seed(31)
    x = torch.rand(n, 2, generator=g) * 4
    return TensorDataset(x - 2, (x.floor().sum(1) % 2).long())


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(5)
    data = checkerboard(1130)
    sampler = DistributedSampler(data, shuffle=True)
    loader = DataLoader(data, batch_size=12, sampler=sampler)
    model = DDP(
        torch.nn.Sequential(
            torch.nn.Linear(2, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2)
        )
    )
    opt = torch.optim.Adam(model.parameters(), lr=3e-3, betas=(0.9, 0.98))
    for epoch in range(3):
        sampler.set_epoch(epoch)
        running = 0.0
        for window in windows(loader, 4):
            count = sum(len(y) for _, y in window)
            for k, (x, y) in enumerate(window, 1):
                with contextlib.nullcontext() if k == len(window) else model.no_sync():
                    loss = F.cross_entropy(model(x), y, reduction="sum") / count
                    loss.backward()
                running += loss.item()
            opt.step()
            for p in model.parameters():
                p.grad = None
        if dist.get_rank() == 0:
            print(f"{epoch}: {running:.3f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
