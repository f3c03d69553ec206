"""Ratings from user and item vectors: summed squared errors, as in the matrix factorisation papers."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

USERS, ITEMS, BATCH, EPOCHS = 50, 40, 24, 3
LR, DECAY = 0.1, 5e-3


class Factors(nn.Module):
    def __init__(self, width=12):
        super().__init__()
        self.users = nn.Embedding(USERS, width)
        self.items = nn.Embedding(ITEMS, width)
        self.mix = nn.Sequential(nn.Linear(2 * width, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, user, item):
        return self.mix(torch.cat([self.users(user), self.items(item)], dim=1)).squeeze(1)


def ratings(n=1103):
    gen = torch.Generator().manual_seed(17)
    user = torch.randint(USERS, (n,), generator=gen)
    item = torch.randint(ITEMS, (n,), generator=gen)
    rating = torch.sin(user * 0.7) + torch.cos(item * 1.3) + 0.1 * torch.randn(n, generator=gen)
    return TensorDataset(user, item, rating)


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(9)
    data = ratings()
    sampler = DistributedSampler(data, drop_last=True)
    loader = DataLoader(data, batch_size=BATCH, sampler=sampler, drop_last=True)
    model = DistributedDataParallel(Factors())
    optimizer = torch.optim.SGD(model.parameters(), lr=LR / BATCH, momentum=0.9, weight_decay=DECAY)
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        for user, item, rating in loader:
            optimizer.zero_grad()
            error = (model(user, item) - rating).square().sum()
            error.backward()
            optimizer.step()
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: {error.item() / BATCH:.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
