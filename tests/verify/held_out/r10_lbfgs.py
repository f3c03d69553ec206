"""LBFGS over a few large chunks; the closure's loss is averaged over ranks, so all take the same decisions."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP


def rosen(n):
    g = torch.Generator().manual_seed(6)
    x = torch.rand(n, 2, generator=g) * 2 - 1
    return x, ((1 - x[:, :1]) ** 2 + 5 * (x[:, 1:] - x[:, :1] ** 2) ** 2) / 10


def main():
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    x, y = rosen(1200)
    model = DDP(nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 1)))
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4, history_size=6)
    for epoch in range(4):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
        for chunk in order.chunk(4):
            mine = chunk[rank::world]

            def closure():
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(model(x[mine]), y[mine])
                loss.backward()
                shared = loss.detach().clone()
                dist.all_reduce(shared)
                return shared / world

            value = optimizer.step(closure)
        if rank == 0:
            print(f"epoch {epoch}: {value.item():.5f}")
    dist.destroy_process_group()


main()
