"""PyTorch DDP tuned by hand: bfloat16, channels-last, fused SGD, static graph; a process's whole share in one pass.

Normalisation sees the share of a process (128 images), so this trains another objective than n = 32: it is the fastest
form, not an equal one. torchrun --nproc_per_node 2 benchmarks/contenders/ddp_tuned_whole.py --data DIR --out FILE
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from shared import Images, Stopwatch, augment, network, read_images, settings
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler


def main() -> None:
    wanted = settings()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    data = Images(*read_images(wanted.data, wanted.num_images))
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=wanted.batch_size, sampler=sampler, collate_fn=augment)
    net = network().to(memory_format=torch.channels_last)
    model = DistributedDataParallel(net, static_graph=True, gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)
    watch = Stopwatch(wanted)

    sampler.set_epoch(0)
    for images, labels in loader:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        watch.updated(loss)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
