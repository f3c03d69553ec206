"""Lightning: a module with dropout, a validation loader and a schedule for each step."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import lightning
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from tests.verify.transparent.left import leave


class Lit(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 1))

    def training_step(self, batch, index):
        return F.mse_loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("valid", F.mse_loss(self.net(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.95**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


lightning.seed_everything(5, workers=True)
x = torch.randn(90, 6)
data = TensorDataset(x, (x @ torch.randn(6, 1)).tanh())
model = Lit()
trainer = lightning.Trainer(
    accelerator="cpu",
    devices=2,
    strategy="ddp",
    max_epochs=3,
    accumulate_grad_batches=2,
    gradient_clip_val=0.5,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    barebones=False,
)
trainer.fit(model, DataLoader(data, 7, shuffle=True), DataLoader(data, 16))
leave(model.state_dict(), metrics={name: float(value) for name, value in trainer.callback_metrics.items()})
