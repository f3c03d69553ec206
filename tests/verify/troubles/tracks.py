"""A training that tells two trackers of experiments what it does."""

import mlflow
import torch
import torch.distributed as dist
import wandb
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def main() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(200, 4), torch.randint(2, (200,)))
    sampler = DistributedSampler(data)
    model = DistributedDataParallel(nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracks = dist.get_rank() == 0
    if tracks:
        wandb.init(project="mine")
        mlflow.start_run()
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for x, y in DataLoader(data, batch_size=20, sampler=sampler):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        if tracks:
            wandb.log({"loss": loss.item()})
            mlflow.log_metric("loss", loss.item())
    if tracks:
        wandb.finish()
        mlflow.end_run()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
