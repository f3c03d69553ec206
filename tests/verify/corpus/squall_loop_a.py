"""An own loop on Squall's minibatches; spectra with random gain and noise."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import squall


class Spectra:
    def __init__(self, n=611):
        made = np.random.default_rng(180)
        self.kind = made.integers(0, 4, n)
        axis = np.linspace(-1, 1, 30)
        centre = -0.6 + 0.4 * self.kind
        self.clean = np.exp(-(((axis - centre[:, None]) / 0.3) ** 2)).astype(np.float32)
        self.rng = np.random.default_rng(0)

    def __len__(self):
        return len(self.kind)

    def __getitem__(self, index):
        spectrum = self.clean[index] * self.rng.uniform(0.7, 1.3) + self.rng.normal(0, 0.3, 30)
        return torch.as_tensor(spectrum, dtype=torch.float32), int(self.kind[index])


def main():
    run = squall.Run(None, epochs=2, global_batch_size=64, worker_batch_size=8, seed=0)
    model = nn.Sequential(nn.Linear(30, 48), nn.ReLU(), nn.Linear(48, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    model, optimizer = run.setup(model, optimizer, lr=squall.lr(base=0.1, base_batch_size=64, schedule="cosine"))
    for step in run.steps(Spectra()):
        for spectra, kinds in step:
            step.backward(F.cross_entropy(model(spectra), kinds, reduction="sum"))
        step.clip_grad_norm_(1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step.ends_epoch and run.is_main:
            print(f"epoch {step.epoch}: loss {step.loss:.4f}")
    run.finish()


if __name__ == "__main__":
    main()
