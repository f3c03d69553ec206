"""Ported from a cluster without DDP; the helper that averages gradients is still called."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler


def average_gradients(model):
    size = float(dist.get_world_size())
    for param in model.parameters():
        dist.all_reduce(param.grad.data, op=dist.ReduceOp.SUM)
        param.grad.data /= size


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, kernel_size=3)
        self.conv2 = nn.Conv2d(6, 12, kernel_size=3)
        self.fc1 = nn.Linear(48, 32)
        self.fc2 = nn.Linear(32, 10)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        return F.log_softmax(self.fc2(F.relu(self.fc1(x.flatten(1)))), dim=1)


def digits(n=731):
    gen = torch.Generator().manual_seed(1234)
    glyphs = torch.rand(10, 1, 8, 8, generator=gen)
    target = torch.randint(10, (n,), generator=gen)
    return TensorDataset(glyphs[target] + 0.3 * torch.randn(n, 1, 8, 8, generator=gen), target)


def run(rank, size):
    torch.manual_seed(1234)
    dataset = digits()
    sampler = DistributedSampler(dataset, size, rank)
    train_set = DataLoader(dataset, batch_size=128 // size, sampler=sampler)
    model = DDP(Net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.5)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epoch_loss = 0.0
        for data, target in train_set:
            optimizer.zero_grad()
            loss = F.nll_loss(model(data), target)
            epoch_loss += loss.item()
            loss.backward()
            average_gradients(model)
            optimizer.step()
        print("Rank", rank, "epoch", epoch, "loss", epoch_loss / len(train_set))


if __name__ == "__main__":
    dist.init_process_group("gloo")
    run(dist.get_rank(), dist.get_world_size())
    dist.destroy_process_group()
