"""Momentum SGD written by hand, with a warm-up and a drop of the rate."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


class MomentumSGD(torch.optim.Optimizer):
    def __init__(self, params, lr, momentum=0.9):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "velocity" not in state:
                    state["velocity"] = torch.zeros_like(p)
                velocity = state["velocity"]
                velocity.mul_(group["momentum"]).add_(p.grad)
                p.sub_(velocity, alpha=group["lr"])


def spirals(n=905):
    gen = torch.Generator().manual_seed(31)
    label = torch.randint(2, (n,), generator=gen)
    angle = torch.rand(n, generator=gen) * 6
    turn = angle + label * torch.pi
    points = torch.stack([turn.cos(), turn.sin()], dim=1) * angle[:, None] / 3
    return TensorDataset(points + 0.05 * torch.randn(n, 2, generator=gen), label)


def factor(step):
    return (step + 1) / 10 if step < 10 else (1.0 if step < 40 else 0.1)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    dataset = spirals()
    sampler = DistributedSampler(dataset)
    loader = DataLoader(dataset, batch_size=16, sampler=sampler)
    model = DDP(nn.Sequential(nn.Linear(2, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 2)))
    optimizer = MomentumSGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            scheduler.step()
        if dist.get_rank() == 0:
            print("epoch", epoch, "loss", f"{loss.item():.4f}")
    dist.destroy_process_group()
