"""Tied weights, a frozen table, weight_norm, blocks that are skipped at random (the same on all ranks), dropout."""

import math
import random

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


class Autoencoder(nn.Module):
    def __init__(self, vocab=30, width=16, depth=3):
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        nn.init.normal_(self.embed.weight, std=0.1)
        self.position = nn.Embedding(12, width)
        self.position.weight.requires_grad_(False)
        self.layers = nn.ModuleList(weight_norm(nn.Linear(width, width)) for _ in range(depth))
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(width, vocab, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor(math.sqrt(width)))

    def forward(self, tokens, keep):
        h = self.embed(tokens) * self.scale + self.position(torch.arange(tokens.shape[1]))
        for layer, on in zip(self.layers, keep):
            if on:
                h = h + self.drop(torch.tanh(layer(h.roll(1, dims=1))))
        return self.head(h)


def main():
    dist.init_process_group("gloo")
    random.seed(4)
    torch.manual_seed(4)
    g = torch.Generator().manual_seed(71)
    start = torch.randint(30, (608, 1), generator=g)
    tokens = (start + torch.arange(13) * torch.randint(1, 5, (608, 1), generator=g)) % 30
    data = TensorDataset(tokens)
    model = nn.parallel.DistributedDataParallel(Autoencoder(), find_unused_parameters=True)
    torch.manual_seed(400 + dist.get_rank())
    decay = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    rest = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=3e-3
    )
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=16, sampler=sampler)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for (t,) in loader:
            keep = [random.random() < 0.8 for _ in range(3)]
            logits = model(t[:, :-1], keep)
            loss = nn.functional.cross_entropy(logits.reshape(-1, 30), t[:, 1:].reshape(-1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if dist.get_rank() == 0:
            print(epoch, loss.item())
    dist.destroy_process_group()


main()
