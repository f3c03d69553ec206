"""Trains with dropout and batch normalisation; the whole validation set is measured on rank 0 after each epoch."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def letters(n, seed):
    gen = torch.Generator().manual_seed(seed)
    shapes = torch.rand(12, 36, generator=torch.Generator().manual_seed(3))
    label = torch.randint(12, (n,), generator=gen)
    return TensorDataset(shapes[label] + 0.3 * torch.randn(n, 36, generator=gen), label)


@torch.no_grad()
def accuracy(model, loader):
    model.eval()
    hits = total = 0
    for x, y in loader:
        hits += (model(x).argmax(1) == y).sum().item()
        total += len(y)
    return hits / total


def main(epochs=3):
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(rank)  # dropout masks of its own on each rank; weights come from rank 0
    train, val = letters(941, seed=1), letters(203, seed=2)
    sampler = DistributedSampler(train, seed=10)
    loader = DataLoader(train, batch_size=25, sampler=sampler)
    val_loader = DataLoader(val, batch_size=100)
    net = nn.Sequential(nn.Linear(36, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 12))
    model = DDP(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        if rank == 0:
            print(f"epoch {epoch}: validation accuracy {accuracy(net, val_loader):.3f}")
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
