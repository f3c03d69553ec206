"""Small classifier, with the accuracy on a held-out set after each epoch."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def rings(n, seed):
    gen = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (n,), generator=gen)
    direction = nn.functional.normalize(torch.randn(n, 5, generator=gen))
    return TensorDataset(direction * (1 + y[:, None]) + 0.3 * torch.randn(n, 5, generator=gen), y)


@torch.no_grad()
def test(model, dataset):
    sampler = DistributedSampler(dataset, shuffle=False)
    loader = DataLoader(dataset, batch_size=64, sampler=sampler)
    model.eval()
    correct, seen = 0, 0
    for x, y in loader:
        correct += (model(x).argmax(1) == y).sum().item()
        seen += len(y)
    accuracy = torch.tensor(correct / seen)
    dist.all_reduce(accuracy)
    return accuracy.item() / dist.get_world_size()


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(4)
    train_set, test_set = rings(845, 1), rings(361, 2)
    sampler = DistributedSampler(train_set)
    loader = DataLoader(train_set, batch_size=30, sampler=sampler)
    net = nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 3))
    model = DDP(net)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-3)
    for epoch in range(3):
        model.train()
        sampler.set_epoch(epoch)
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        accuracy = test(net, test_set)
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: loss {loss.item():.4f}, test accuracy {accuracy:.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
