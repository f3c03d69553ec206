"""A small VAE: BCE + KLD summed over features, averaged over samples; noise differs between ranks."""

import argparse

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--batch-size", type=int, default=32)
args = parser.parse_args()


class VAE(nn.Module):
    def __init__(self, pixels=49, hidden=40, latent=4):
        super().__init__()
        self.fc1 = nn.Linear(pixels, hidden)
        self.fc21, self.fc22 = nn.Linear(hidden, latent), nn.Linear(hidden, latent)
        self.fc3, self.fc4 = nn.Linear(latent, hidden), nn.Linear(hidden, pixels)

    def forward(self, x):
        h = F.relu(self.fc1(x))
        mu, logvar = self.fc21(h), self.fc22(h)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z)))), mu, logvar


def loss_function(recon_x, x, mu, logvar):
    BCE = F.binary_cross_entropy(recon_x, x, reduction="sum")
    KLD = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return BCE + KLD


def squares(n):
    g = torch.Generator().manual_seed(50)
    images = torch.zeros(n, 7, 7)
    for image, (i, j, s) in zip(images, torch.randint(0, 4, (n, 3), generator=g).tolist()):
        image[i : i + s + 1, j : j + s + 1] = 1
    return images.view(n, 49)


dist.init_process_group("gloo")
torch.manual_seed(args.epochs)
model = nn.parallel.DistributedDataParallel(VAE())
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
data = squares(1216)
sampler = DistributedSampler(data)
train_loader = DataLoader(data, batch_size=args.batch_size, sampler=sampler, drop_last=True)
torch.manual_seed(1000 + dist.get_rank())
for epoch in range(1, args.epochs + 1):
    sampler.set_epoch(epoch)
    train_loss = 0
    for x in train_loader:
        optimizer.zero_grad()
        loss = loss_function(*(lambda r: (r[0], x, r[1], r[2]))(model(x))) / len(x)
        loss.backward()
        train_loss += loss.item()
        optimizer.step()
    if dist.get_rank() == 0:
        print(f"====> Epoch: {epoch} Average loss: {train_loss / len(train_loader):.4f}")
dist.destroy_process_group()
