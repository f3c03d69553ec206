"""Plain PyTorch DDP with PyTorch's defaults: float32, NCHW, unfused SGD, the threads that torchrun sets.

torchrun --nproc_per_node 2 benchmarks/contenders/ddp_default.py --data DIR --out FILE
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from shared import Images, Stopwatch, augment_nchw, network, read_images, settings
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler


def main() -> None:
    wanted = settings()
    dist.init_process_group("gloo")
    data = Images(*read_images(wanted.data, wanted.num_images))
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=wanted.batch_size, sampler=sampler, collate_fn=augment_nchw)
    model = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, nesterov=True, weight_decay=5e-4)
    watch = Stopwatch(wanted)

    sampler.set_epoch(0)
    for images, labels in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        watch.updated(loss)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
