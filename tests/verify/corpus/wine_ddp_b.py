import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

SEED = 1234


def wine(rows=533):
    gen = torch.Generator().manual_seed(SEED)
    x = torch.randn(rows, 11, generator=gen)
    score = x[:, :3].sum(1) + 0.2 * torch.randn(rows, generator=gen)
    return TensorDataset(x, torch.bucketize(score, torch.tensor([-1.5, 0.0, 1.5])))


def train_one_epoch(model, loader, optimizer, steps):
    model.train()
    losses = []
    for step, (x, quality) in enumerate(loader):
        if step == steps:
            break
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), quality)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def main():
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", rank=rank, world_size=world)
    torch.manual_seed(SEED + rank)
    net = nn.Sequential(nn.Linear(11, 50), nn.LayerNorm(50), nn.GELU(), nn.Linear(50, 4))
    model = DistributedDataParallel(net)
    data = wine()
    loader = DataLoader(data, batch_size=20, shuffle=True)
    steps = len(loader) // world
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for epoch in range(4):
        loss = train_one_epoch(model, loader, optimizer, steps)
        if rank == 0:
            print(f"epoch {epoch}: {loss:.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
