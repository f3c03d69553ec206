"""Lightning that accumulates two batches an update."""

import logging
import os
import warnings

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

ACCUMULATE = 2


class Regressor(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(9, 36), nn.Tanh(), nn.Linear(36, 1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.8)


class Data(L.LightningDataModule):
    def setup(self, stage):
        gen = torch.Generator().manual_seed(140)
        x = torch.randn(1440, 9, generator=gen)
        self.train = TensorDataset(x, (x[:, :3].sum(1, keepdim=True)).tanh())

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=20, shuffle=True)


if __name__ == "__main__":
    L.seed_everything(3, verbose=False)
    devices = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    trainer = L.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=2,
        accumulate_grad_batches=ACCUMULATE,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Regressor(), datamodule=Data())
