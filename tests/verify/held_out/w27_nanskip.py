"""A focal loss of one's own and an auxiliary head at 0.3; the model returns a dictionary."""

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

ALPHA = torch.tensor([0.5, 1.0, 2.0, 1.5])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(18, 48), nn.LayerNorm(48), nn.SiLU())
        self.body = nn.Sequential(nn.Linear(48, 48), nn.SiLU())
        self.main = nn.Linear(48, 4)
        self.aux = nn.Linear(48, 4)
        self.size = nn.Linear(48, 1)

    def forward(self, x):
        low = self.stem(x)
        high = low + self.body(low)
        return {"logits": self.main(high), "aux": self.aux(low), "size": self.size(high)[:, 0]}


class Focal(nn.Module):
    def __init__(self, gamma=2.0):
        super().__init__()
        self.gamma = gamma

    def forward(self, logits, target):
        logp = logits.log_softmax(-1).gather(1, target[:, None])[:, 0]
        return (-ALPHA[target] * (1 - logp.exp()) ** self.gamma * logp).mean()


def main():
    dist.init_process_group("gloo")
    g = torch.Generator().manual_seed(9)
    x = torch.randn(905, 18, generator=g)
    x[411, 3] = float("inf")
    data = TensorDataset(x, x[:, :4].argmax(1), x.norm(dim=1))
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(Net(), gradient_as_bucket_view=True)
    focal, optimizer = Focal(), torch.optim.NAdam(model.parameters(), lr=2e-3)
    sampler = DistributedSampler(data, drop_last=True)
    loader = DataLoader(data, 25, sampler=sampler, drop_last=True)
    for epoch in range(1, 4):
        sampler.set_epoch(epoch)
        for x, kind, size in loader:
            out = model(x)
            terms = {
                "main": focal(out["logits"], kind),
                "aux": 0.3 * nn.functional.cross_entropy(out["aux"], kind, label_smoothing=0.05),
                "size": 0.5 * nn.functional.huber_loss(out["size"], size),
            }
            loss = sum(terms.values())
            optimizer.zero_grad()
            loss.backward()
            if torch.isfinite(loss):
                optimizer.step()
        if dist.get_rank() == 0:
            print(epoch, {k: round(v.item(), 4) for k, v in terms.items()})
    dist.destroy_process_group()


main()
