"""Accelerate: a prepared loader, optimiser and schedule, and accumulation."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from tests.verify.transparent.left import leave

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
set_seed(4, device_specific=False)
x = torch.randn(90, 6)
data = TensorDataset(x, (x @ torch.randn(6, 1)).tanh())
model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
loader = DataLoader(data, 7, shuffle=True, num_workers=1)
model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
means = []
for _ in range(3):
    for inputs, wanted in loader:
        with accelerator.accumulate(model):
            loss = F.mse_loss(model(inputs), wanted)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        means.append(float(accelerator.gather_for_metrics(loss.detach()).mean()))
leave(model.state_dict(), means=means, rates=schedule.get_last_lr())
accelerator.end_training()
