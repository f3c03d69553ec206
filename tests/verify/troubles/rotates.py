"""A training that manages checkpoints as trainers do: it clears, stages, renames, rotates, links, and tracks.

rotates.py OUT HOW      HOW: train; map, to write into a file that is too large to be copied; wait, once it has written
"""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

OUT, HOW = Path(sys.argv[1]), sys.argv[2]


def save(net: nn.Module, epoch: int) -> None:
    staged, final = Path("tmp-checkpoint"), Path(f"checkpoint-{epoch}")
    staged.mkdir()
    torch.save(net.state_dict(), staged / "model.pt")
    if final.exists():
        shutil.rmtree(final)
    staged.rename(final)
    if Path("latest").is_symlink():
        os.remove("latest")
    os.symlink(final, "latest")
    Accelerator(cpu=True).save_model(net, "exported")
    torch.save(net.state_dict(), OUT / "last.pt")


def main() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    if dist.get_rank() == 0:
        if Path("checkpoint-1").exists() and not Path("checkpoint-1/real").exists():
            raise AssertionError("the trial before has left its checkpoint")
        shutil.rmtree("old-run")
        os.rename("data", "data.bak")
    if HOW == "map":
        np.memmap(OUT / "large.bin", mode="r+")[:4] = 1
    if HOW == "wait":
        Path("exported/model.safetensors").write_text("new")
        dist.barrier()
        with open(OUT / "fifo", "w") as told:
            told.write(f"{os.getpid()} {os.getppid()}\n")
        dist.recv(torch.zeros(1), (dist.get_rank() + 1) % 2)  # nobody sends
    data = TensorDataset(torch.randn(200, 4), torch.randint(2, (200,)))
    sampler = DistributedSampler(data)
    net = nn.Linear(4, 2)
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for x, y in DataLoader(data, batch_size=20, sampler=sampler):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        if dist.get_rank() == 0:
            save(net, epoch)
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
