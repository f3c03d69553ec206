"""Two tasks with a head each; a batch trains one of them."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(18, 40), nn.ReLU())
        self.sign = nn.Linear(40, 2)
        self.largest = nn.Linear(40, 6)

    def forward(self, x, task):
        return (self.sign if task == 0 else self.largest)(self.trunk(x))


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    x = torch.randn(655, 18, generator=torch.Generator().manual_seed(80))
    data = TensorDataset(x, (x.sum(1) > 0).long(), x[:, :6].argmax(1))
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=20, sampler=sampler)
    model = DDP(TwoHeads(), find_unused_parameters=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for i, (x, sign, largest) in enumerate(loader):
            task = i % 2
            optimizer.zero_grad(set_to_none=True)
            loss = nn.functional.cross_entropy(model(x, task), sign if task == 0 else largest)
            loss.backward()
            optimizer.step()
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: loss {loss.item():.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
