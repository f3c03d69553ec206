"""Hugging Face Accelerate in its usual form, defaults.

torchrun --nproc_per_node 2 benchmarks/contenders/accelerate_plain.py --data DIR --out FILE
"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from shared import Images, Stopwatch, augment_nchw, network, read_images, settings
from torch.utils.data import DataLoader


def main() -> None:
    wanted = settings()
    accelerator = Accelerator(cpu=True)
    data = Images(*read_images(wanted.data, wanted.num_images))
    loader = DataLoader(data, batch_size=wanted.batch_size, shuffle=True, collate_fn=augment_nchw)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, nesterov=True, weight_decay=5e-4)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    watch = Stopwatch(wanted)

    model.train()
    for images, labels in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        accelerator.backward(loss)
        optimizer.step()
        watch.updated(loss)
    accelerator.end_training()


if __name__ == "__main__":
    main()
