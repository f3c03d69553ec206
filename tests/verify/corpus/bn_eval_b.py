"""Batch normalisation without broadcasting buffers at every step; measured on all ranks together."""

import argparse

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset


def textures(n, seed):
    gen = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (n,), generator=gen)
    grid = torch.arange(8.0)
    wave = torch.sin(grid[None, :, None] * (1 + y[:, None, None]) * 0.8) + torch.cos(grid[None, None, :] * 0.5)
    return TensorDataset((wave + 1.4 * torch.randn(n, 8, 8, generator=gen)).unsqueeze(1), y)


def average_buffers(model):
    for buffer in model.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= dist.get_world_size()


@torch.no_grad()
def evaluate(net, data):
    net.eval()
    mine = Subset(data, range(dist.get_rank(), len(data), dist.get_world_size()))
    counts = torch.zeros(2)
    for x, y in DataLoader(mine, batch_size=50):
        counts += torch.tensor([(net(x).argmax(1) == y).sum(), len(y)])
    dist.all_reduce(counts)
    return (counts[0] / counts[1]).item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--save", help="write the final weights to this file")
    args = parser.parse_args()
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    train, test = textures(579, 1), textures(180, 2)
    sampler = DistributedSampler(train)
    loader = DataLoader(train, batch_size=15, sampler=sampler)
    net = nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(128, 4)),
    )
    model = DDP(net, broadcast_buffers=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.03, momentum=0.9)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        net.train()
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        average_buffers(net)
        accuracy = evaluate(net, test)
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: accuracy {accuracy:.4f}")
    if args.save and dist.get_rank() == 0:
        torch.save(net.state_dict(), args.save)
    dist.destroy_process_group()
