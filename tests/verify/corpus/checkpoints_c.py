"""Saves every few updates; started again with the same --ckpt it goes on where it was."""

import argparse
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def save(path, state):
    if dist.get_rank() == 0:
        torch.save(state, path + ".tmp")
        os.replace(path + ".tmp", path)
    dist.barrier()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--ckpt", help="folder for the checkpoint; none is written without it")
    parser.add_argument("--save-every", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()

    dist.init_process_group("gloo")
    torch.manual_seed(0)
    gen = torch.Generator().manual_seed(70)
    x = torch.randn(505, 12, generator=gen)
    data = TensorDataset(x, x[:, :4].argmax(1))
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=16, sampler=sampler)
    net = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 4))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    total = args.epochs * len(loader)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 8) * max(0.0, 1 - step / total)
    )
    first_epoch, first_batch = 0, 0
    path = os.path.join(args.ckpt, "last.pt") if args.ckpt else None
    if path and os.path.exists(path):
        state = torch.load(path, weights_only=True)
        net.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        first_epoch, first_batch = state["epoch"], state["batch"]
    model = DDP(net)

    for epoch in range(first_epoch, args.epochs):
        sampler.set_epoch(epoch)
        for i, (x, y) in enumerate(loader):
            if epoch == first_epoch and i < first_batch:
                continue
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            scheduler.step()
            if path and (i + 1) % args.save_every == 0:
                parts = {"model": net, "optimizer": optimizer, "scheduler": scheduler}
                state = {name: part.state_dict() for name, part in parts.items()}
                save(path, state | {"epoch": epoch, "batch": i + 1})
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: {loss.item():.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
