"""Lightning: DataModule, validation, checkpoints, clipping by value, one cycle by steps, log with sync_dist."""

import logging
import os
import tempfile
import warnings

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Data(L.LightningDataModule):
    def setup(self, stage):
        g = torch.Generator().manual_seed(1)
        x = torch.randn(960, 8, generator=g)
        whole = TensorDataset(x, (x[:, :3].sum(1) > x[:, 3:6].sum(1)).long())
        self.train, self.val = random_split(whole, [720, 240], generator=torch.Generator().manual_seed(2))

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=20, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=40)


class Lit(L.LightningModule):
    def __init__(self, lr=0.01):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 2))

    def training_step(self, batch, _):
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.log("train_loss", loss)
        return {"loss": loss}

    def validation_step(self, batch, _):
        x, y = batch
        logits = self.net(x)
        self.log("val_loss", nn.functional.cross_entropy(logits, y), sync_dist=True)
        self.log("val_acc", (logits.argmax(1) == y).float().mean(), sync_dist=True)

    def configure_optimizers(self):
        opt = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        total = int(self.trainer.estimated_stepping_batches)
        sched = torch.optim.lr_scheduler.OneCycleLR(opt, self.hparams.lr, total_steps=total)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": sched, "interval": "step"}}


if __name__ == "__main__":
    L.seed_everything(3, verbose=False)
    devices = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    trainer = L.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp",
        max_epochs=3,
        use_distributed_sampler=False,
        gradient_clip_val=0.05,
        gradient_clip_algorithm="value",
        logger=False,
        default_root_dir=tempfile.gettempdir(),
        callbacks=[
            ModelCheckpoint(tempfile.mkdtemp(), monitor="val_loss"),
            EarlyStopping("val_loss", patience=3),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Lit(), datamodule=Data())
