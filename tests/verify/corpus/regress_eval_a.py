# Heteroscedastic regression; two optimisers: SGD for the mean, Adam for the variance head.
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset


class Gaussian(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 1))
        self.log_variance = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x):
        return self.mean(x), self.log_variance(x)


def points(n, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=g)
    return TensorDataset(x, x[:, :1] * x[:, 1:2] + x[:, 2:3].exp() * 0.2 * torch.randn(n, 1, generator=g))


@torch.no_grad()
def validate(net, dataset):
    """Mean squared error over the whole set; each process takes a block of it."""
    rank, world = dist.get_rank(), dist.get_world_size()
    block = -(-len(dataset) // world)
    mine = Subset(dataset, range(rank * block, min((rank + 1) * block, len(dataset))))
    errors = torch.cat([(net(x)[0] - y).square() for x, y in DataLoader(mine, batch_size=20)])
    mean = errors.mean()
    dist.all_reduce(mean)
    return mean.item() / world


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(5)
    train_set, val_set = points(811, 1), points(97, 2)
    sampler = DistributedSampler(train_set)
    loader = DataLoader(train_set, batch_size=25, sampler=sampler)
    net = Gaussian()
    model = DDP(net)
    optimizers = [
        torch.optim.SGD(net.mean.parameters(), lr=0.02, momentum=0.9),
        torch.optim.Adam(net.log_variance.parameters(), lr=2e-3),
    ]
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for x, y in loader:
            mean, log_variance = model(x)
            loss = nn.functional.gaussian_nll_loss(mean, y, log_variance.exp())
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
        error = validate(net, val_set)
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: loss {loss.item():.4f}, validation mse {error:.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
