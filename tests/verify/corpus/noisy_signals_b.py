"""1-D signals; Gaussian noise and a random gain are added when a sample is read."""

import argparse

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, Dataset, DistributedSampler


class Signals(Dataset):
    def __init__(self, n, length=32):
        rng = np.random.default_rng(77)
        self.kind = rng.integers(0, 3, n)
        phase = rng.uniform(0, 6.28, n)
        time = np.linspace(0, 6.28, length)
        frequency = 1 + self.kind
        self.clean = np.sin(frequency[:, None] * time + phase[:, None]).astype(np.float32)

    def __len__(self):
        return len(self.kind)

    def __getitem__(self, i):
        signal = self.clean[i] * np.random.uniform(0.8, 1.2)
        signal = signal + np.random.normal(0, 0.2, signal.shape)
        return torch.from_numpy(signal.astype(np.float32)), int(self.kind[i])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(args.seed)
    np.random.seed(args.seed + rank)

    data = Signals(701)
    sampler = DistributedSampler(data, seed=args.seed)
    loader = DataLoader(data, batch_size=16, sampler=sampler)
    net = nn.Sequential(
        *(nn.Unflatten(1, (1, 32)), nn.Conv1d(1, 12, 5, padding=2), nn.ReLU(), nn.AvgPool1d(4)),
        *(nn.Flatten(), nn.Linear(96, 3)),
    )
    model = DDP(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loss_fn = nn.CrossEntropyLoss()
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for signal, kind in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(signal), kind)
            loss.backward()
            optimizer.step()
        if rank == 0:
            print(f"epoch {epoch}, loss {loss.item():.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
