import argparse

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def tabular(n, width):
    g = torch.Generator().manual_seed(15)
    table = torch.randn(n, width, generator=g)
    return TensorDataset(table, (table[:, :4].prod(1) > 0).float())


def fit(args):
    data = tabular(1277, 10)
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=args.batch_size, sampler=sampler)
    model = DDP(nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)))
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    scaler = torch.amp.GradScaler("cpu", enabled=args.amp, init_scale=1024.0)
    criterion = nn.BCEWithLogitsLoss()
    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        for rows, target in loader:
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16, enabled=args.amp):
                output = model(rows).squeeze(1)
            loss = criterion(output.float(), target)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: loss {loss.item():.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="AMP on CPU")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=40)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--no-amp", dest="amp", action="store_false")
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    fit(parser.parse_args())
    dist.destroy_process_group()
