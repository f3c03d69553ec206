"""Several parameter groups: a lower rate for the encoder, no decay for the normalisation layers."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


class Classifier(nn.Module):
    def __init__(self, width=40):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(25, width), nn.ReLU(), nn.Linear(width, width))
        self.norm = nn.LayerNorm(width)
        self.neck = nn.Linear(width, width)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        return self.head(torch.relu(self.neck(self.norm(self.encoder(x)))))


def make_optimizer(model):
    groups = [
        {"params": model.encoder.parameters(), "lr": 0.01},
        {"params": model.norm.parameters(), "weight_decay": 0.0},
        {"params": model.head.parameters()},
    ]
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=1e-3)


def make_data(n=755):
    g = torch.Generator().manual_seed(14)
    x = torch.randn(n, 25, generator=g)
    return TensorDataset(x, (x[:, :5] + 0.5 * x[:, 5:10]).argmax(1))


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(2)
    data = make_data()
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=18, sampler=sampler)
    model = Classifier()
    optimizer = make_optimizer(model)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[2], gamma=0.2)
    ddp = DistributedDataParallel(model)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for x, y in loader:
            loss = nn.functional.cross_entropy(ddp(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: loss {loss.item():.4f} rates {scheduler.get_last_lr()}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
