"""Lightning's Trainer in its usual form, defaults; it starts its own second process.

python benchmarks/contenders/lightning_plain.py --data DIR --out FILE
"""

import tempfile

import lightning
import torch
import torch.nn.functional as F
from shared import Images, Settings, Stopwatch, augment_nchw, network, read_images, settings
from torch.utils.data import DataLoader


class Classifier(lightning.LightningModule):
    def __init__(self, wanted: Settings) -> None:
        super().__init__()
        self.net = network()
        self.watch = Stopwatch(wanted)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.net(images), labels)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def on_train_batch_end(self, outputs: dict[str, torch.Tensor], batch: object, index: int) -> None:
        self.watch.updated(outputs["loss"])


def main() -> None:
    wanted = settings()
    data = Images(*read_images(wanted.data, wanted.num_images))
    loader = DataLoader(data, batch_size=wanted.batch_size, shuffle=True, collate_fn=augment_nchw)
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            accelerator="cpu", devices=wanted.processes, strategy="ddp", max_epochs=1, default_root_dir=folder
        )
        trainer.fit(Classifier(wanted), loader)


if __name__ == "__main__":
    main()
