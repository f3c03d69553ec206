"""Bag-of-words topics with gradient accumulation: 4 micro-batches an update, linear warm-up."""

import contextlib

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

ACCUM = 4
EPOCHS = 2
WARMUP = 5


def corpus(n=803, vocabulary=120, length=20, topics=5):
    g = torch.Generator().manual_seed(11)
    topic = torch.randint(topics, (n,), generator=g)
    words = (torch.randn(n, length, generator=g).abs() * 12 + topic[:, None] * 20).long().clamp(max=vocabulary - 1)
    return TensorDataset(words, topic)


def main():
    dist.init_process_group(backend="gloo")
    torch.manual_seed(0)
    data = corpus()
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=8, sampler=sampler, drop_last=True)
    model = DDP(nn.Sequential(nn.EmbeddingBag(120, 24), nn.Tanh(), nn.Linear(24, 5)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: min(1.0, (update + 1) / WARMUP))
    criterion = nn.CrossEntropyLoss()

    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        num_batches = len(loader)
        running = 0.0
        for i, (words, topic) in enumerate(loader):
            last = (i + 1) % ACCUM == 0 or i + 1 == num_batches
            with contextlib.nullcontext() if last else model.no_sync():
                loss = criterion(model(words), topic)
                loss.backward()
            running += loss.item()
            if last:
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        if dist.get_rank() == 0:
            print(f"[{epoch}] loss {running / num_batches:.4f} lr {scheduler.get_last_lr()[0]:.5f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
