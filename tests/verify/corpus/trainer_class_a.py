"""A trainer class in the style of the tutorials."""

import copy

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


class Trainer:
    def __init__(self, model, optimizer, train_data, batch_size):
        self.rank = dist.get_rank()
        self.model = DDP(model)
        self.optimizer = optimizer
        self.initial = copy.deepcopy(model).eval()  # to compare with at the end
        self.sampler = DistributedSampler(train_data)
        self.loader = DataLoader(train_data, batch_size=batch_size, sampler=self.sampler)

    def _run_batch(self, source, target):
        self.optimizer.zero_grad()
        loss = nn.functional.smooth_l1_loss(self.model(source), target)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def _run_epoch(self, epoch):
        self.sampler.set_epoch(epoch)
        losses = [self._run_batch(source, target) for source, target in self.loader]
        if self.rank == 0:
            print(f"epoch {epoch} | steps {len(losses)} | loss {sum(losses) / len(losses):.4f}")

    def train(self, max_epochs):
        for epoch in range(max_epochs):
            self._run_epoch(epoch)


def load_train_objs():
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(1023, 16, generator=generator)
    target = torch.stack([source.sum(1), source.square().mean(1)], dim=1)
    model = nn.Sequential(nn.Linear(16, 48), nn.SiLU(), nn.Linear(48, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=1e-2)
    return TensorDataset(source, target), model, optimizer


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    data, model, optimizer = load_train_objs()
    Trainer(model, optimizer, data, batch_size=32).train(max_epochs=3)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
