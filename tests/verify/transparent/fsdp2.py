"""FSDP2 with accumulation, clipping, and layers of which some ranks hold nothing."""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from tests.verify.transparent.left import leave

dist.init_process_group("gloo")
torch.manual_seed(0)
x = torch.randn(90, 6)
data = TensorDataset(x, (x @ torch.randn(6, 1)).tanh())
model = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Dropout(0.2), nn.Linear(5, 1))
for layer in (model[0], model[3]):
    fully_shard(layer)
fully_shard(model)
torch.manual_seed(dist.get_rank())
random.seed(0)
np.random.seed(0)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=30)
sampler = DistributedSampler(data, seed=3)
loader = DataLoader(data, 5, sampler=sampler)
for epoch in range(3):
    sampler.set_epoch(epoch)
    for count, (inputs, wanted) in enumerate(loader, 1):
        (F.mse_loss(model(inputs), wanted) / 3).backward()
        if count % 3 == 0:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
leave(model.state_dict(), rates=schedule.get_last_lr())
dist.destroy_process_group()
