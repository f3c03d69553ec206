"""A Lion optimiser of our own, averaged weights (EMA), and an evaluation that gathers predictions and drops padding."""

import torch
import torch.distributed as dist
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


class Lion(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, dict(lr=lr, betas=betas, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_((m * b1 + p.grad * (1 - b1)).sign_(), alpha=-group["lr"])
                m.mul_(b2).add_(p.grad, alpha=1 - b2)


def moons(n, seed):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (n,), generator=g)
    t = torch.rand(n, generator=g) * 3.1416
    x = torch.stack([t.cos() + y, t.sin() * (1 - 2.0 * y) + 0.5 * y], 1)
    return TensorDataset(x + 0.15 * torch.randn(n, 2, generator=g), y)


@torch.inference_mode()
def evaluate(model, loader, size):
    preds, labels = [], []
    for x, y in loader:
        preds.append(model(x).argmax(1))
        labels.append(y)
    pair = torch.stack([torch.cat(preds), torch.cat(labels)])
    gathered = [torch.empty_like(pair) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, pair)
    # the sampler deals out like cards: sample i is the (i // world)-th of rank i % world
    whole = torch.stack(gathered, dim=2).flatten(1)[:, :size]
    return (whole[0] == whole[1]).float().mean().item()


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(12)
    train, test = moons(850, 1), moons(211, 2)
    model = nn.parallel.DistributedDataParallel(
        nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Dropout(0.4), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    )
    torch.manual_seed(500 + dist.get_rank())
    ema = AveragedModel(model.module, multi_avg_fn=get_ema_multi_avg_fn(0.95), use_buffers=True)
    opt = Lion(model.parameters(), lr=1e-3, weight_decay=0.02)
    sampler = DistributedSampler(train)
    loader = DataLoader(train, batch_size=25, sampler=sampler)
    test_loader = DataLoader(test, batch_size=32, sampler=DistributedSampler(test, shuffle=False))
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for x, y in loader:
            loss = nn.functional.cross_entropy(model(x), y)
            opt.zero_grad()
            loss.backward()
            opt.step()
            ema.update_parameters(model.module)
        acc = evaluate(model, test_loader, len(test))
        if dist.get_rank() == 0:
            print(f"{epoch} loss {loss.item():.4f} ema accuracy {acc:.4f}")
    dist.destroy_process_group()


main()
