"""A small training that goes wrong in the way it is told: see tests/process/test_verify_troubles.py."""

import os
import signal
import subprocess
import sys
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def misbehave(how: str, rank: int) -> None:
    """Once, in the midst of the training."""
    if how == "hang" and rank == 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(0.1)  # rank 1 waits here for ever
    if how == "crash" and rank == 1:
        raise ZeroDivisionError("the third batch is one too many")
    if how == "kill" and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exit":
        sys.exit(3)
    if how == "fork" and not os.fork():
        os.setsid()
        if os.fork():
            os._exit(0)
        time.sleep(600)  # a daemon that never ends: somebody must end it
        os._exit(0)
    if how == "child":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)


def train(how: str) -> None:
    rank = dist.get_rank()
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(200, 4), torch.randint(2, (200,)))
    sampler = DistributedSampler(data)
    model = DistributedDataParallel(nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for step, (x, y) in enumerate(DataLoader(data, batch_size=20, sampler=sampler)):
            if epoch == 0 and step == 2:
                misbehave(how, rank)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()


def spawned(rank: int) -> None:
    raise AssertionError(rank)


def main(how: str) -> None:
    if how == "spawn":
        mp.spawn(spawned, nprocs=2)
    if how == "nothing":
        print("nothing to do")
        return
    if how == "early":
        raise RuntimeError("no data\x1b[31m here")
    dist.init_process_group("gloo")
    train(how)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
