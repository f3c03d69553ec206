"""A GAN of two small networks that learns a ring of points."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

LATENT = 4


def ring(n=703):
    gen = torch.Generator().manual_seed(100)
    angle = torch.rand(n, generator=gen) * 6.2832
    return TensorDataset(torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(n, 2, generator=gen))


def mlp(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, outputs))


def main():
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    generator, critic = DDP(mlp(LATENT, 2)), DDP(mlp(2, 1))
    noise = torch.Generator().manual_seed(1000 + rank)
    opt_g = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.999))
    opt_c = torch.optim.Adam(critic.parameters(), lr=2e-3, betas=(0.5, 0.999))
    data = ring()
    sampler = DistributedSampler(data, seed=3)
    loader = DataLoader(data, batch_size=24, sampler=sampler)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for (real,) in loader:
            count = len(real)
            fake = generator(torch.randn(count, LATENT, generator=noise))
            labels = torch.cat([torch.ones(count, 1), torch.zeros(count, 1)])
            opt_c.zero_grad()
            loss_c = F.binary_cross_entropy_with_logits(critic(torch.cat([real, fake.detach()])), labels)
            loss_c.backward()
            opt_c.step()
            opt_g.zero_grad()
            loss_g = F.binary_cross_entropy_with_logits(critic(fake), torch.ones(count, 1))
            loss_g.backward()
            opt_g.step()
        if rank == 0:
            print(f"epoch {epoch}: critic {loss_c.item():.4f}, generator {loss_g.item():.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
