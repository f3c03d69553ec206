"""Iterations, not epochs: an endless stream over the loader, one-cycle rate, clipping."""

import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler


class Spirals(Dataset):
    def __init__(self, n=1201):
        g = torch.Generator().manual_seed(11)
        self.y = torch.randint(3, (n,), generator=g)
        t = torch.rand(n, generator=g) * 4
        a = t + self.y * 2.0944
        self.x = torch.stack([t * a.cos(), t * a.sin()], 1) + 0.1 * torch.randn(n, 2, generator=g)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"point": self.x[i], "arm": self.y[i]}


def forever(loader):
    passes = 0
    while True:
        yield from loader
        passes += 1


def main(max_steps=90):
    dist.init_process_group("gloo")
    torch.manual_seed(int(os.environ["RANK"]))
    data = Spirals()
    loader = DataLoader(data, batch_size=20, sampler=DistributedSampler(data, drop_last=True), drop_last=True)
    model = DistributedDataParallel(
        torch.nn.Sequential(
            torch.nn.Linear(2, 64), torch.nn.GELU(), torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 3)
        )
    )
    optim = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    sched = torch.optim.lr_scheduler.OneCycleLR(optim, max_lr=5e-3, total_steps=max_steps)
    stream = forever(loader)
    step = 0
    while step < max_steps:
        batch = next(stream)
        out = model(batch["point"])
        loss = torch.nn.functional.cross_entropy(out, batch["arm"], label_smoothing=0.1)
        optim.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optim.step()
        sched.step()
        step += 1
        if step % 30 == 0 and dist.get_rank() == 0:
            print(step, round(loss.item(), 4))
    dist.destroy_process_group()


main()
