"""Each minibatch is cut into one share a process; no sample is added or left out."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Sampler, TensorDataset


class ShareSampler(Sampler):
    """Batches of this rank: every global batch of an epoch's permutation, every world-th index of it."""

    def __init__(self, size, global_batch, rank, world, seed=0):
        self.size, self.global_batch, self.rank, self.world, self.seed = size, global_batch, rank, world, seed
        self.epoch = 0

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 1000 + self.epoch)
        for batch in torch.randperm(self.size, generator=generator).split(self.global_batch):
            yield batch[self.rank :: self.world].tolist()

    def __len__(self):
        return -(-self.size // self.global_batch)


def blobs(n, classes=6):
    g = torch.Generator().manual_seed(21)
    y = torch.randint(classes, (n,), generator=g)
    return TensorDataset(torch.randn(n, 20, generator=g) + torch.eye(20)[y] * 3, y)


def run(epochs=3, global_batch=60):
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(3)
    data = blobs(607)
    sampler = ShareSampler(len(data), global_batch, rank, world)
    loader = DataLoader(data, batch_sampler=sampler)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 6)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(epochs):
        sampler.epoch = epoch
        for x, y in loader:
            optimizer.zero_grad()
            count = torch.tensor(float(len(y)))
            dist.all_reduce(count)
            loss = F.cross_entropy(model(x), y, reduction="sum") * world / count
            loss.backward()
            optimizer.step()
        if rank == 0:
            print(f"epoch {epoch}: loss {loss.item():.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    run()
