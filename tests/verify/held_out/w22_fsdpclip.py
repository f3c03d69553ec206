"""FSDP2 with a mixed precision policy, clipping over all shards, cosine after a linear warm-up."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


class Mixer(nn.Module):
    def __init__(self, tokens=8, width=12):
        super().__init__()
        self.up = nn.Linear(4, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"mix": nn.Linear(tokens, tokens), "ff": nn.Linear(width, width)}) for _ in range(2)
        )
        self.out = nn.Linear(width, 3)

    def forward(self, x):
        h = self.up(x)
        for b in self.blocks:
            h = h + torch.relu(b["mix"](h.transpose(1, 2))).transpose(1, 2)
            h = h + torch.relu(b["ff"](h))
        return self.out(h.mean(1))


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(6)
    model = Mixer()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    fully_shard(model, mp_policy=policy)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    g = torch.Generator().manual_seed(60)
    x = torch.randn(792, 8, 4, generator=g)
    data = TensorDataset(x, x.amax(1)[:, :3].argmax(1))
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=18, sampler=sampler, drop_last=True)
    total = 3 * len(loader)
    sched = SequentialLR(opt, [LinearLR(opt, 0.1, 1.0, 6), CosineAnnealingLR(opt, total - 6)], [6])
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for x, y in loader:
            loss = nn.functional.cross_entropy(model(x).float(), y)
            loss.backward()
            norm = sum(p.grad.to_local().pow(2).sum() for p in model.parameters()).sqrt()
            for p in model.parameters():
                p.grad.mul_(torch.clamp(0.3 / (norm + 1e-6), max=1.0).item())
            opt.step()
            sched.step()
            opt.zero_grad()
        if dist.get_rank() == 0:
            print(epoch, loss.item(), norm.item())
    dist.destroy_process_group()


main()
