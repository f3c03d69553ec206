"""InfoNCE between two views, negatives from all ranks (the gather passes gradients back)."""

import torch
import torch.distributed as dist
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
    every = []
    for mine in (a, b):
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, mine.detach().contiguous())
        parts[dist.get_rank()] = mine
        every.append(torch.cat(parts))
    logits = scale * every[0] @ every[1].T
    here = torch.arange(len(logits))
    return (F.cross_entropy(logits, here) + F.cross_entropy(logits.T, here)) / 2


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(3)
    g = torch.Generator().manual_seed(4)
    z = torch.randn(780, 5, generator=g)
    data = TensorDataset(torch.sin(z @ torch.randn(5, 12, generator=g)), torch.cos(z @ torch.randn(5, 9, generator=g)))
    sampler = DistributedSampler(data, seed=8)
    loader = DataLoader(data, batch_size=20, sampler=sampler, drop_last=True)
    model = nn.parallel.DistributedDataParallel(Towers())
    opt = torch.optim.AdamW(model.parameters(), lr=2e-3)
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
