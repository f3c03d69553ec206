"""Squall's third door: the user's own loop through `squall.Run`, the same arithmetic as `squall train cifar10`.

torchrun --nproc_per_node 2 benchmarks/contenders/squall_own_loop.py --data DIR --out FILE [--reduction fast]
"""

import torch
import torch.nn.functional as F
from shared import Stopwatch, network, read_images, settings

import squall
from squall.data.augment import compile_ops
from squall.data.images import ImageSet


def main() -> None:
    wanted = settings()
    ops = [{"random_crop": 32, "padding": 4}, {"horizontal_flip": 0.5}, {"normalize": "cifar10"}]
    images, labels = (tensor.numpy() for tensor in read_images(wanted.data, wanted.num_images))
    data = ImageSet.of(images, labels, compile_ops(ops, (32, 32, 3)), [str(i) for i in range(10)], "cifar10")
    run = squall.Run(
        wanted.out.with_suffix(".run"),
        epochs=1,
        global_batch_size=wanted.global_batch_size,
        worker_batch_size=wanted.worker_batch_size,
        reduction=wanted.reduction,
        precision="bf16",
        channels_last=True,
        fuse=wanted.fuse or 1,
    )
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)
    model, optimizer = run.setup(model, optimizer, lr=squall.lr(base=0.1, base_batch_size=128, schedule="cosine"))
    watch = Stopwatch(wanted)

    for step in run.steps(data):
        for inputs, targets in step:
            loss = F.cross_entropy(model(inputs), targets, reduction="sum")
            step.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        watch.updated(step.loss, barrier=False)
    run.finish()


if __name__ == "__main__":
    main()
