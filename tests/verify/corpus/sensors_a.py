"""Sensor log with a few broken readings: an update whose loss is not finite is left out."""

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def readings(n=623):
    gen = torch.Generator().manual_seed(50)
    x = torch.randn(n, 8, generator=gen)
    y = x[:, :1] - x[:, 1:2] * x[:, 2:3]
    x[[57, 402], 3] = float("nan")  # the log has these, too
    return TensorDataset(x, y)


def average(model):
    for p in model.parameters():
        dist.all_reduce(p.grad)
        p.grad /= dist.get_world_size()


def main(epochs=3):
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    data = readings()
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=16, sampler=sampler)
    model = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    skipped = 0
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            finite = torch.isfinite(loss.detach()).int()
            dist.all_reduce(finite, op=dist.ReduceOp.MIN)
            if not finite:
                skipped += 1
                continue
            average(model)
            optimizer.step()
        print(f"rank {dist.get_rank()}: epoch {epoch}, {skipped} skipped, loss {loss.item():.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
