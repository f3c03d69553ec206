"""Accelerate: batches split over processes, accumulation with the library's context, clipping, a rate of one's own."""

import math

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def main():
    accelerator = Accelerator(
        cpu=True,
        gradient_accumulation_steps=2,
        dataloader_config=DataLoaderConfiguration(split_batches=True),
    )
    set_seed(11)
    g = torch.Generator().manual_seed(3)
    x = torch.randn(960, 12, generator=g)
    y = (x @ torch.randn(12, 4, generator=g)).argmax(1)
    loader = DataLoader(TensorDataset(x, y), batch_size=48, shuffle=True, drop_last=True)
    model = nn.Sequential(nn.Linear(12, 64), nn.Mish(), nn.Linear(64, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    updates = 3 * len(loader) // 2
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    done = 0
    for epoch in range(3):
        for x, y in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(x), y)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    for group in optimizer.param_groups:
                        group["lr"] = 0.2 * 0.5 * (1 + math.cos(math.pi * done / updates))
                    accelerator.clip_grad_norm_(model.parameters(), 0.5)
                    done += 1
                optimizer.step()
                optimizer.zero_grad()
        average = accelerator.reduce(loss.detach(), reduction="mean")
        accelerator.print(epoch, average.item())
    accelerator.end_training()


if __name__ == "__main__":
    main()
