"""A plain DistributedDataParallel script with one fault, which no error message shows.

torchrun --standalone --nproc-per-node 2 examples/find_the_fault.py      trains, and all looks well
squall verify examples/find_the_fault.py                                 names it
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from squall.data import sources  # for the digits alone


def main(epochs=3, batch_size=32):
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    found = sources.load("digits", None, "train")
    digits = TensorDataset(torch.from_numpy(found.images).flatten(1) / 255, torch.from_numpy(found.labels))
    sampler = DistributedSampler(digits)
    loader = DataLoader(digits, batch_size=batch_size, sampler=sampler)
    model = DistributedDataParallel(
        nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10))
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for epoch in range(epochs):
        for images, labels in loader:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: loss {loss.item():.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
