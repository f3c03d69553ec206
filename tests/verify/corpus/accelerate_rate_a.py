import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def make_dataset(n=953):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(n, 24, generator=generator)
    return TensorDataset(inputs, (inputs[:, 0] * inputs[:, 1] > 0).long())


def main():
    config = {"lr": 0.05, "num_epochs": 3, "seed": 42, "batch_size": 16}
    accelerator = Accelerator(cpu=True)
    set_seed(config["seed"])
    train_dataloader = DataLoader(make_dataset(), shuffle=True, batch_size=config["batch_size"])
    model = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=config["lr"], momentum=0.9)
    total = len(train_dataloader) * config["num_epochs"]
    lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / total))
    model, optimizer, train_dataloader, lr_scheduler = accelerator.prepare(
        model, optimizer, train_dataloader, lr_scheduler
    )

    for epoch in range(config["num_epochs"]):
        model.train()
        for inputs, targets in train_dataloader:
            outputs = model(inputs)
            loss = nn.functional.cross_entropy(outputs, targets)
            accelerator.backward(loss)
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()
        accelerator.print(f"epoch {epoch}: loss {loss.item():.4f}, lr {lr_scheduler.get_last_lr()[0]:.5f}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
