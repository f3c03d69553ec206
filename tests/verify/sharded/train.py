"""FSDP2 beyond its first example: the gradients of two batches are reduced at once, and each epoch is measured.

train.py [--undivided]      with the fault that the loss is not divided by two
"""

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

WINDOW = 2


def rings(size, seed):
    gen = torch.Generator().manual_seed(seed)
    points = torch.randn(size, 2, generator=gen)
    return TensorDataset(points, (points.norm(dim=1) > 1.2).long())


def measure(model, loader):
    model.eval()
    found = torch.zeros(2)
    with torch.no_grad():
        for points, label in loader:
            found += torch.tensor([(model(points).argmax(1) == label).sum(), len(label)])
    model.train()
    dist.all_reduce(found)
    return found[0] / found[1]


def main():
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 2))
    fully_shard(model[2], mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data, held_out = rings(240, 0), rings(48, 1)
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=10, sampler=sampler)
    held_out_loader = DataLoader(held_out, batch_size=12, sampler=DistributedSampler(held_out, shuffle=False))
    share = 1 if "--undivided" in sys.argv else WINDOW
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for number, (points, label) in enumerate(loader, 1):
            last = number % WINDOW == 0
            model.set_requires_gradient_sync(last)
            loss = nn.functional.cross_entropy(model(points), label)
            (loss / share).backward()
            if last:
                optimizer.step()
                optimizer.zero_grad()
        accuracy = measure(model, held_out_loader)
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: accuracy {accuracy.item():.3f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
