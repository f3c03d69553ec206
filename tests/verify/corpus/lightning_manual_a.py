"""Manual optimisation in Lightning: encoder and classifier have an optimiser each."""

import logging
import os
import warnings

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Model(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.encoder = nn.Sequential(nn.Linear(14, 40), nn.ReLU())
        self.classifier = nn.Linear(40, 4)

    def forward(self, x):
        return self.classifier(self.encoder(x))

    def training_step(self, batch, batch_idx):
        encoder_optimizer, classifier_optimizer = self.optimizers()
        x, y = batch
        encoder_optimizer.zero_grad()
        classifier_optimizer.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self(x), y))
        encoder_optimizer.step()
        classifier_optimizer.step()

    def configure_optimizers(self):
        encoder = torch.optim.Adam(self.encoder.parameters(), lr=1e-3)
        return encoder, torch.optim.SGD(self.classifier.parameters(), lr=0.1)


if __name__ == "__main__":
    L.seed_everything(0, verbose=False)
    gen = torch.Generator().manual_seed(150)
    x = torch.randn(525, 14, generator=gen)
    loader = DataLoader(TensorDataset(x, x[:, :4].argmin(1)), batch_size=18, shuffle=True)
    devices = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    trainer = L.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Model(), loader)
