"""Lightning Fabric with accumulation, clipping by norm, and an all_reduce of the metrics."""

import os

import torch
from lightning.fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def main(fabric):
    fabric.seed_everything(21, verbose=False)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(1152, 9, generator=g)
    data = TensorDataset(x, x.sin().sum(1, keepdim=True))
    loader = fabric.setup_dataloaders(DataLoader(data, batch_size=16, shuffle=True))
    model = nn.Sequential(nn.Linear(9, 50), nn.Hardswish(), nn.Linear(50, 1))
    model, optimizer = fabric.setup(model, torch.optim.Adamax(model.parameters(), lr=5e-3))
    every = 3
    for epoch in range(3):
        if hasattr(loader.sampler, "set_epoch"):
            loader.sampler.set_epoch(epoch)
        whole = len(loader) // every * every  # 36, 24: no partial window
        for i, (x, y) in enumerate(loader):
            last = (i + 1) % every == 0
            with fabric.no_backward_sync(model, enabled=not last):
                loss = nn.functional.mse_loss(model(x), y)
                fabric.backward(loss / every)
            if last:
                fabric.clip_gradients(model, optimizer, max_norm=1.0)
                optimizer.step()
                optimizer.zero_grad()
        assert i + 1 == whole
        fabric.print(epoch, fabric.all_reduce(loss.detach(), reduce_op="mean").item())


if __name__ == "__main__":
    fabric = Fabric(accelerator="cpu", devices=int(os.environ.get("LOCAL_WORLD_SIZE", 1)), strategy="ddp")
    fabric.launch()
    main(fabric)
