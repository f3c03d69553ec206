"""A training that writes over a file, renames one, appends to one, removes one and makes a folder of new ones."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def save(net: nn.Module) -> None:
    if dist.get_rank() == 0:
        os.makedirs("out/deep", exist_ok=True)
        torch.save(net.state_dict(), "out/deep/last.pt.tmp")
        os.replace("out/deep/last.pt.tmp", "out/deep/last.pt")
        torch.save(net.state_dict(), "model.pt")
        save_file(net.state_dict(), "model.safetensors")
        Path("old.txt").unlink(missing_ok=True)
    with open("log.txt", "a", encoding="utf-8") as file:  # every rank
        file.write(f"rank {dist.get_rank()}\n")


def main() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(200, 4), torch.randint(2, (200,)))
    sampler = DistributedSampler(data)
    net = nn.Linear(4, 2)
    if Path("out/deep/last.pt").exists():
        raise AssertionError("the trial before has left its checkpoint")
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for x, y in DataLoader(data, batch_size=20, sampler=sampler):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        save(net)
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
