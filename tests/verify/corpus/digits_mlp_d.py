"""An MLP on 8x8 digits, data parallel.

torchrun --standalone --nproc-per-node 2 THIS_FILE
"""

import argparse

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler


def make_digits(n, seed):
    g = torch.Generator().manual_seed(seed)
    prototypes = torch.rand(10, 64, generator=torch.Generator().manual_seed(7))
    labels = torch.randint(10, (n,), generator=g)
    return TensorDataset(prototypes[labels] + 0.4 * torch.randn(n, 64, generator=g), labels)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    seed = args.seed + rank
    torch.manual_seed(seed)

    train = make_digits(1437, seed=1)
    sampler = DistributedSampler(train, seed=seed)
    loader = DataLoader(train, batch_size=args.batch_size, sampler=sampler)
    model = DDP(nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10)))
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.1)

    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        total = 0.0
        for images, labels in loader:
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        scheduler.step()
        if rank == 0:
            print(f"epoch {epoch}: loss {total / len(loader):.4f} ({world_size} processes)")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
