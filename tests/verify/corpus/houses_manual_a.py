"""House prices without DistributedDataParallel: gradients are averaged by a few lines of our own."""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

RANK = int(os.environ.get("RANK", 0))
WORLD = int(os.environ.get("WORLD_SIZE", 1))


def houses(count=1203):
    gen = torch.Generator().manual_seed(2)
    features = torch.randn(count, 13, generator=gen)
    weights = torch.randn(13, 1, generator=gen)
    prices = features @ weights + 0.1 * torch.randn(count, 1, generator=gen)
    return TensorDataset(features, prices / prices.std())


def average_gradients(model):
    if WORLD == 1:
        return
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad, op=dist.ReduceOp.SUM)
        parameter.grad /= WORLD


def share(epoch, count):
    """This rank's part of the epoch's permutation; all parts are equally long."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1000 + epoch))
    return order[: count // WORLD * WORLD][RANK::WORLD].tolist()


def main(epochs=3, batch_size=24):
    if WORLD > 1:
        dist.init_process_group("gloo")
    data = houses()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for epoch in range(epochs):
        loader = DataLoader(Subset(data, share(epoch, len(data))), batch_size=batch_size)
        for features, prices in loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(features), prices)
            loss.backward()
            average_gradients(model)
            optimizer.step()
        if RANK == 0:
            print(f"epoch {epoch}: {loss.item():.4f}")
    if WORLD > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
