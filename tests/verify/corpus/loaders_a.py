"""Point clouds, jittered and rotated in loader processes."""

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, Dataset, DistributedSampler


class Clouds(Dataset):
    def __init__(self, n, points=24, seed=0):
        made = np.random.default_rng(99)
        self.label = made.integers(0, 2, n)
        radius = np.where(self.label[:, None] == 0, 1.0, made.uniform(0.2, 1.8, (n, points)))
        angle = made.uniform(0, 2 * np.pi, (n, points))
        self.cloud = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
        self.rng = np.random.default_rng(seed)

    def __len__(self):
        return len(self.label)

    def __getitem__(self, i):
        turn = self.rng.uniform(0, 2 * np.pi)
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        cloud = self.cloud[i] @ rotation + self.rng.normal(0, 0.05, self.cloud[i].shape)
        return torch.as_tensor(cloud, dtype=torch.float32), int(self.label[i])


class PointNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.point = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.head = nn.Linear(32, 2)

    def forward(self, clouds):
        return self.head(self.point(clouds).mean(1))


def main():
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)

    data = Clouds(467, seed=rank)
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=16, sampler=sampler, num_workers=2)
    model = DDP(PointNet())
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for clouds, labels in loader:
            loss = nn.functional.cross_entropy(model(clouds), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if rank == 0:
            print(f"epoch {epoch}: {loss.item():.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
