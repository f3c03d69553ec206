"""WGAN-GP: gradient penalty with create_graph; the critic takes 2 updates for each of the generator."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def penalty(critic, real, fake):
    mix = torch.rand(len(real), 1)
    point = (mix * real + (1 - mix) * fake).requires_grad_()
    (slope,) = torch.autograd.grad(critic(point).sum(), point, create_graph=True)
    return ((slope.norm(dim=1) - 1) ** 2).mean()


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(dist.get_rank())
    g = torch.Generator().manual_seed(2)
    centres = torch.tensor([[2.0, 0], [-2, 0], [0, 2], [0, -2]])
    data = TensorDataset(centres[torch.randint(4, (961,), generator=g)] + 0.1 * torch.randn(961, 2, generator=g))
    G = DDP(nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 2)))
    D = DDP(nn.Sequential(nn.Linear(2, 32), nn.Softplus(), nn.Linear(32, 32), nn.Softplus(), nn.Linear(32, 1)))
    optG = torch.optim.Adam(G.parameters(), lr=1e-3, betas=(0.0, 0.9))
    optD = torch.optim.Adam(D.parameters(), lr=1e-3, betas=(0.0, 0.9))
    sampler = DistributedSampler(data, drop_last=True)
    loader = DataLoader(data, batch_size=20, sampler=sampler, drop_last=True)
    it = 0
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for (real,) in loader:
            with torch.no_grad():
                fake = G(torch.randn(len(real), 3))
            optD.zero_grad()
            lossD = D(fake).mean() - D(real).mean() + 10.0 * penalty(D, real, fake)
            lossD.backward()
            optD.step()
            it += 1
            if it % 2 == 0:
                for p in D.parameters():
                    p.requires_grad_(False)
                optG.zero_grad()
                lossG = -D.module(G(torch.randn(len(real), 3))).mean()
                lossG.backward()
                optG.step()
                for p in D.parameters():
                    p.requires_grad_(True)
        if dist.get_rank() == 0:
            print(epoch, lossD.item(), lossG.item())
    dist.destroy_process_group()


main()
