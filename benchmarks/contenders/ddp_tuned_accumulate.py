"""PyTorch DDP tuned by hand as in `ddp_tuned_whole.py`, but in passes of n = 32 under `no_sync`.

What a careful user writes who wants Goyal's normalisation over 32 at a share of 128 a process. Without `static_graph`:
torch 2.13 ends with an internal assert when it meets `no_sync` (pytorch#187732, accelerate#3679).

torchrun --nproc_per_node 2 benchmarks/contenders/ddp_tuned_accumulate.py --data DIR --out FILE
"""

from contextlib import nullcontext

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
    model = DistributedDataParallel(net, gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)
    watch = Stopwatch(wanted)

    sampler.set_epoch(0)
    for images, labels in loader:
        optimizer.zero_grad()
        passes = list(zip(images.split(wanted.worker_batch_size), labels.split(wanted.worker_batch_size), strict=True))
        for number, (inputs, targets) in enumerate(passes):
            with nullcontext() if number == len(passes) - 1 else model.no_sync():
                with torch.autocast("cpu", torch.bfloat16):
                    loss = F.cross_entropy(model(inputs), targets)
                (loss / len(passes)).backward()
        optimizer.step()
        watch.updated(loss)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
