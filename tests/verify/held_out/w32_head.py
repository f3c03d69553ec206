"""InfoNCE between two views, negatives from all ranks (the gather passes gradients back)."""

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dnn
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 16))
        self.right = nn.Sequential(nn.Linear(9, 32), nn.ReLU(), nn.Linear(32, 16))
        self.temperature = nn.Parameter(torch.tensor(2.0))

    def forward(self, a, b):
        return F.normalize(self.left(a), dim=1), F.normalize(self.right(b), dim=1), self.temperature.exp()


def contrastive(a, b, scale):
    all_a, all_b = torch.cat(dnn.all_gather(a)), torch.cat(dnn.all_gather(b))
    here = torch.arange(len(a)) + dist.get_rank() * len(a)
    return (F.cross_entropy(scale * a @ all_b.T, here) + F.cross_entropy(scale * b @ all_a.T, here)) / 2


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(3)
    g = torch.Generator().manual_seed(4)
    z = torch.randn(780, 5, generator=g)
    data = TensorDataset(torch.sin(z @ torch.randn(5, 12, generator=g)), torch.cos(z @ torch.randn(5, 9, generator=g)))
    sampler = DistributedSampler(data, seed=8)
    loader = DataLoader(data, batch_size=20, sampler=sampler, drop_last=True)
    towers = Towers()
    opt = torch.optim.AdamW(towers.parameters(), lr=2e-3)
    towers.right = nn.Sequential(nn.Linear(9, 48), nn.GELU(), nn.Linear(48, 16))
    model = nn.parallel.DistributedDataParallel(towers)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for a, b in loader:
            loss = contrastive(*model(a, b))
            opt.zero_grad()
            loss.backward()
            opt.step()
        if dist.get_rank() == 0:
            print(epoch, f"{loss.item():.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
