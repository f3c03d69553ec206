"""A deeper residual MLP whose blocks are computed again in the backward pass; the embedding is frozen."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


class Residual(nn.Module):
    def __init__(self, depth=6, width=32):
        super().__init__()
        self.embed = nn.Embedding(30, width)
        self.embed.weight.requires_grad_(False)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
            for _ in range(depth)
        )
        self.head = nn.Linear(width, 3)

    def forward(self, tokens):
        hidden = self.embed(tokens).mean(1)
        for block in self.blocks:
            hidden = hidden + checkpoint(block, hidden, use_reentrant=False)
        return self.head(hidden)


def words(n=621):
    gen = torch.Generator().manual_seed(110)
    label = torch.randint(3, (n,), generator=gen)
    return TensorDataset(torch.randint(10, (n, 9), generator=gen) + label[:, None] * 6, label)


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    data = words()
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=26, sampler=sampler)
    model = DDP(Residual())
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=3e-3)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for tokens, label in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(tokens), label)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: loss {loss.item():.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
