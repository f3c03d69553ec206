"""Plateau schedule and early stopping on a validation loss that all ranks agree on; warm restarts are not for us."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset


def make(n=1000):
    g = torch.Generator().manual_seed(17)
    x = torch.rand(n, 5, generator=g) * 2 - 1
    return TensorDataset(x, (x**2).sum(1, keepdim=True) + 0.3 * torch.randn(n, 1, generator=g))


@torch.no_grad()
def validate(model, loader):
    was = model.training
    model.eval()
    stats = torch.zeros(2, dtype=torch.float64)
    for x, y in loader:
        stats[0] += nn.functional.mse_loss(model(x), y, reduction="sum").item()
        stats[1] += len(y)
    dist.all_reduce(stats)
    return (stats[0] / stats[1]).item()


def main(epochs=6, patience=2):
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(2)
    data = make()
    train = Subset(data, range(780))
    val = Subset(data, range(780 + rank, 1000, world))  # no padding: shares may differ by one
    sampler = DistributedSampler(train)
    loader, val_loader = DataLoader(train, 26, sampler=sampler), DataLoader(val, 64)
    model = DDP(nn.Sequential(nn.Linear(5, 40), nn.ReLU(), nn.Dropout(0.2), nn.Linear(40, 1)))
    opt = torch.optim.Adagrad(model.parameters(), lr=0.05)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, factor=0.3, patience=0, threshold=0.3)
    best, bad = float("inf"), 0
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for x, y in loader:
            opt.zero_grad()
            nn.functional.mse_loss(model(x), y).mul(0.5).backward()
            opt.step()
        loss = validate(model.module, val_loader)
        plateau.step(loss)
        best, bad = (loss, 0) if loss < best else (best, bad + 1)
        stop = torch.tensor(bad >= patience, dtype=torch.int32)
        dist.broadcast(stop, 0)
        if rank == 0:
            print(f"epoch {epoch} val {loss:.4f} lr {opt.param_groups[0]['lr']:.4f}")
        if stop.item():
            break
    dist.destroy_process_group()


main()
