# Regression of a noisy surface. Large batch on small machines: sums are accumulated and divided once.
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

EPOCHS, MICRO, EVERY = 3, 12, 3


def surface(n):
    gen = torch.Generator().manual_seed(5)
    x = torch.rand(n, 3, generator=gen) * 4 - 2
    y = torch.sin(x[:, :1]) * x[:, 1:2] + 0.5 * x[:, 2:] ** 2 + 0.05 * torch.randn(n, 1, generator=gen)
    return TensorDataset(x, y)


def train():
    data = surface(1099)
    sampler = DistributedSampler(data, seed=1)
    loader = DataLoader(data, batch_size=MICRO, sampler=sampler)
    net = torch.nn.Sequential(torch.nn.Linear(3, 48), torch.nn.Tanh(), torch.nn.Linear(48, 1))
    model = DistributedDataParallel(net)
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        total = torch.zeros(())
        samples = 0  # in the present window
        for i, (x, y) in enumerate(loader):
            loss = F.mse_loss(model(x), y, reduction="sum")
            loss.backward()
            total += loss.detach()
            samples += len(x)
            if (i + 1) % EVERY == 0 or i + 1 == len(loader):
                for p in net.parameters():
                    p.grad /= samples
                opt.step()
                opt.zero_grad()
                samples = 0
        dist.all_reduce(total)
        if dist.get_rank() == 0:
            print(f"epoch {epoch + 1}/{EPOCHS}  mse {total.item() / sampler.total_size:.4f}")


if __name__ == "__main__":
    dist.init_process_group("gloo")
    torch.manual_seed(1)
    train()
    dist.destroy_process_group()
