"""Classifier with an explicit L2 penalty and four micro-batches an update."""

import argparse

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler


def get_data(n=1536, seed=4):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 32, generator=generator)
    teacher = torch.randn(32, 4, generator=generator)
    return TensorDataset(x, (x @ teacher).argmax(1))


def penalty(model):
    return sum(p.pow(2).sum() for p in model.parameters() if p.ndim > 1)


def main(args):
    dist.init_process_group("gloo")
    torch.manual_seed(args.seed)
    data = get_data()
    sampler = DistributedSampler(data, seed=args.seed)
    loader = DataLoader(data, batch_size=16, sampler=sampler)
    model = DDP(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4)))
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)
    criterion = nn.CrossEntropyLoss()
    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        optimizer.zero_grad()
        for i, (x, y) in enumerate(loader, start=1):
            loss = criterion(model(x), y) / args.accumulate + args.l2 * penalty(model)
            loss.backward()
            if i % args.accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: loss {loss.item():.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--accumulate", type=int, default=4)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--l2", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    main(parser.parse_args())
