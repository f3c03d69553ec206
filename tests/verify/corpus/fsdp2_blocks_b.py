"""Transformer blocks sharded with FSDP2 on a CPU mesh."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


class Encoder(nn.Module):
    def __init__(self, width=24, depth=2):
        super().__init__()
        self.embed = nn.Embedding(26, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 48, dropout=0.0, batch_first=True) for _ in range(depth)
        )
        self.head = nn.Linear(width, 2)

    def forward(self, letters):
        hidden = self.embed(letters)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden.mean(1))


def palindromes(n=389, length=6):
    gen = torch.Generator().manual_seed(160)
    words = torch.randint(26, (n, length), generator=gen)
    label = torch.randint(2, (n,), generator=gen)
    words[label == 1] = torch.cat([words[:, : length // 2], words[:, : length // 2].flip(1)], 1)[label == 1]
    return TensorDataset(words, label)


def main():
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(0)
    model = Encoder()
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    data = palindromes()
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=12, sampler=sampler)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for words, label in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(words), label)
            loss.backward()
            optimizer.step()
            shown = loss.detach().clone()
            dist.all_reduce(shown)
            shown /= dist.get_world_size()
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: loss {shown.item():.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
