"""Accelerate with an iterable data set: the main process reads and sends each process its rows."""

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset


class Numbers(IterableDataset):
    def __init__(self, n):
        self.n, self.epoch = n, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        order = torch.randperm(self.n, generator=torch.Generator().manual_seed(self.epoch))
        for i in order.tolist():
            x = torch.randn(6, generator=torch.Generator().manual_seed(i))
            yield {"x": x, "y": x.square().sum(0, keepdim=True).sqrt()}


accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=True))
set_seed(5)
data = Numbers(720)
loader = DataLoader(data, batch_size=15)
model = nn.Sequential(nn.Linear(6, 48), nn.Softplus(), nn.Linear(48, 1))
opt = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.01)
model, opt, loader = accelerator.prepare(model, opt, loader)
sched = LambdaLR(opt, lambda step: min(1.0, (step + 1) / 10))  # not prepared: once an update
for epoch in range(3):
    data.set_epoch(epoch)
    for batch in loader:
        loss = nn.functional.l1_loss(model(batch["x"]), batch["y"])
        accelerator.backward(loss)
        accelerator.clip_grad_value_(model.parameters(), 0.05)
        opt.step()
        sched.step()
        opt.zero_grad()
    accelerator.print(epoch, loss.item())
accelerator.end_training()
