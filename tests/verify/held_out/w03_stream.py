"""An iterable data set, divided among ranks and their loader processes."""

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info


class Stream(IterableDataset):
    def __init__(self, count, seed):
        self.count, self.seed, self.epoch = count, seed, 0
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def __iter__(self):
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(self.seed + self.epoch)).tolist()
        worker = get_worker_info()
        workers, me = (worker.num_workers, worker.id) if worker else (1, 0)
        for i in order[self.rank :: self.world]:
            g = torch.Generator().manual_seed(i)
            x = torch.randn(8, generator=g)
            yield x, (x[0] * x[1] > 0).float()


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(1)
    stream = Stream(count=960, seed=77)  # divisible by 2, 3, 4 processes x 2 workers x 16 or so
    loader = DataLoader(stream, batch_size=16, num_workers=2)
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 1)))
    criterion = nn.BCEWithLogitsLoss()
    opt = torch.optim.RMSprop(model.parameters(), lr=2e-3, momentum=0.5)
    for epoch in range(3):
        stream.epoch = epoch
        for x, y in loader:
            opt.zero_grad()
            loss = criterion(model(x).squeeze(1), y)
            loss.backward()
            opt.step()
        if dist.get_rank() == 0:
            print("epoch", epoch, "loss", loss.item())
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
