"""Accelerate with a validation accuracy over all processes."""

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def get_dataloaders(batch_size):
    centres = torch.randn(9, 15, generator=torch.Generator().manual_seed(2)) * 1.2
    loaders = []
    for n, seed in [(967, 3), (361, 4)]:
        g = torch.Generator().manual_seed(seed)
        y = torch.randint(9, (n,), generator=g)
        data = TensorDataset(centres[y] + torch.randn(n, 15, generator=g), y)
        loaders.append(DataLoader(data, batch_size=batch_size, shuffle=n == 967))
    return loaders


def main():
    accelerator = Accelerator(cpu=True)
    set_seed(0)
    train_dataloader, eval_dataloader = get_dataloaders(batch_size=24)
    model = nn.Sequential(nn.Linear(15, 60), nn.ReLU(), nn.Dropout(0.1), nn.Linear(60, 9))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model, optimizer, train_dataloader, eval_dataloader = accelerator.prepare(
        model, optimizer, train_dataloader, eval_dataloader
    )
    set_seed(100, device_specific=True)  # dropout differs between processes

    for epoch in range(3):
        model.train()
        for x, y in train_dataloader:
            loss = nn.functional.cross_entropy(model(x), y)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()

        model.eval()
        correct = total = 0
        for x, y in eval_dataloader:
            with torch.no_grad():
                predictions = model(x).argmax(dim=-1)
            predictions, references = accelerator.gather((predictions, y))
            correct += (predictions == references).sum().item()
            total += len(references)
        accelerator.print(f"epoch {epoch}: accuracy {100 * correct / total:.2f} %")
    accelerator.end_training()


if __name__ == "__main__":
    main()
