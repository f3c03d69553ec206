"""Half precision with a gradient scaler and clipping."""

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

EPOCHS, BATCH, MAX_NORM = 3, 32, 0.5


def patches(n=1157):
    gen = torch.Generator().manual_seed(40)
    kinds = torch.rand(8, 48, generator=gen)
    y = torch.randint(8, (n,), generator=gen)
    return TensorDataset(kinds[y] + 0.25 * torch.randn(n, 48, generator=gen), y)


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(1)
    data = patches()
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=BATCH, sampler=sampler)
    model = DDP(nn.Sequential(nn.Linear(48, 80), nn.ReLU(), nn.Linear(80, 8)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        for x, y in loader:
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16):
                loss = nn.functional.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            scaler.step(optimizer)
            scaler.update()
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: loss {loss.item():.4f} scale {scaler.get_scale():.0f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
