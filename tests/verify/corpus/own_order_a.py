"""Own sampler: one permutation an epoch, dealt to the ranks like cards."""

import random

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, Sampler, TensorDataset


class DealtSampler(Sampler):
    def __init__(self, length):
        self.length = length
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def __len__(self):
        return self.length // self.world

    def __iter__(self):
        order = list(range(self.length))
        random.shuffle(order)
        return iter(order[self.rank : len(self) * self.world : self.world])


def parity(n=999, bits=6):
    gen = torch.Generator().manual_seed(60)
    x = torch.randint(2, (n, bits), generator=gen).float()
    return TensorDataset(x * 2 - 1 + 0.1 * torch.randn(n, bits, generator=gen), x[:, :3].sum(1).long() % 2)


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(7)
    data = parity()
    loader = DataLoader(data, batch_size=25, sampler=DealtSampler(len(data)))
    model = DDP(nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 2)))
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.05)
    for epoch in range(3):
        total = 0.0
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item()
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: {total / len(loader):.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
