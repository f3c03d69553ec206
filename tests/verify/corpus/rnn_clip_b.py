# Small GRU with gradient clipping. Gradients are averaged without DDP, flattened into one tensor.
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

CLIP = 0.25


class Counter(nn.Module):
    """How often does the mark occur in the sequence?"""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(4, 24, batch_first=True)
        self.out = nn.Linear(24, 1)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1]).squeeze(1)


def average_gradients(model):
    flat = parameters_to_vector([p.grad for p in model.parameters()])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    vector_to_parameters(flat, [p.grad for p in model.parameters()])


def sequences(n=517, length=12):
    gen = torch.Generator().manual_seed(12)
    marks = torch.randint(4, (n, length), generator=gen)
    return TensorDataset(nn.functional.one_hot(marks, 4).float(), (marks == 0).sum(1).float())


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = Counter()
    for p in model.parameters():
        dist.broadcast(p.data, src=0)
    data = sequences()
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=16, sampler=sampler)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for x, y in loader:
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            average_gradients(model)
            clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: loss {loss.item():.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
