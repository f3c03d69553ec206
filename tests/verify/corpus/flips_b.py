"""Images with random flips and shifts, reproducible sample by sample."""

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler


class Augmented(Dataset):
    def __init__(self, n, seed):
        self.seed = seed
        rng = np.random.default_rng(1)
        self.labels = rng.integers(0, 4, n)
        self.images = rng.normal(0, 0.3, (n, 1, 10, 10)).astype(np.float32)
        for image, label in zip(self.images, self.labels, strict=True):
            image[0, 2 + label, 2:8] += 1.5

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        rng = np.random.default_rng((self.seed, index))
        image = self.images[index]
        if rng.random() < 0.5:
            image = image[:, :, ::-1]
        image = np.roll(image, rng.integers(-2, 3), axis=2)
        return torch.from_numpy(image.copy()), int(self.labels[index])


def main(epochs=3, batch_size=20, seed=0):
    dist.init_process_group("gloo")
    torch.manual_seed(seed)
    train = Augmented(487, seed)
    sampler = DistributedSampler(train, seed=seed)
    loader = DataLoader(train, batch_size=batch_size, sampler=sampler)
    model = DistributedDataParallel(
        nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        hits = 0
        for images, labels in loader:
            logits = model(images)
            loss = nn.functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            hits += (logits.argmax(1) == labels).sum().item()
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: train accuracy {hits / len(sampler):.3f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
