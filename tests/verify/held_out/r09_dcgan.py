"""The DCGAN recipe: errD_real.backward(), errD_fake.backward(), one step of each optimiser."""

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

nz = 6
real_label, fake_label = 1.0, 0.0


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Conv2d(1, 8, 3, 2, 1)),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(8 * 16, 1),
        )

    def forward(self, x):
        return self.main(x).view(-1)


def main():
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(999)
    gen = torch.Generator().manual_seed(1)
    grid = torch.linspace(-1, 1, 8)
    centre = torch.rand(644, 2, 1, 1, generator=gen) - 0.5
    images = torch.exp(-8 * ((grid[:, None] - centre[:, :1]) ** 2 + (grid - centre[:, 1:]) ** 2)) * 2 - 1
    dataset = TensorDataset(images)
    sampler = DistributedSampler(dataset)
    dataloader = DataLoader(dataset, batch_size=16, sampler=sampler)
    netG = nn.Sequential(nn.Linear(nz, 64), nn.ReLU(True), nn.Linear(64, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8)))
    netD = nn.parallel.DistributedDataParallel(Discriminator(), broadcast_buffers=False)
    netG = nn.parallel.DistributedDataParallel(netG)
    criterion = nn.BCEWithLogitsLoss()
    optimizerD = torch.optim.Adam(netD.parameters(), lr=0.0004, betas=(0.5, 0.999))
    optimizerG = torch.optim.Adam(netG.parameters(), lr=0.0004, betas=(0.5, 0.999))
    noises = torch.Generator().manual_seed(123 + rank)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for i, data in enumerate(dataloader, 0):
            netD.zero_grad()
            real = data[0]
            label = torch.full((len(real),), real_label)
            errD_real = criterion(netD(real), label)
            errD_real.backward()
            fake = netG(torch.randn(len(real), nz, generator=noises))
            label.fill_(fake_label)
            errD_fake = criterion(netD(fake.detach()), label)
            errD_fake.backward()
            errD = errD_real + errD_fake
            optimizerD.step()

            netG.zero_grad()
            label.fill_(real_label)
            errG = criterion(netD(fake), label)
            errG.backward()
            optimizerG.step()
        if rank == 0:
            print(f"[{epoch}][{i}/{len(dataloader)}] Loss_D {errD.item():.4f} Loss_G {errG.item():.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
