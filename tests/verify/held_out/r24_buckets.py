"""Files per rank, gradients averaged in buckets as backward produces them, a policy gradient-like weight a sample."""

import os
import tempfile

import torch
import torch.distributed as dist
from torch import nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors


class Bucketed:
    """All-reduce of gradients in buckets, begun in backward and awaited before the step."""

    def __init__(self, model, limit=600):
        self.limit, self.bucket, self.size, self.flying = limit, [], 0, []
        for p in model.parameters():
            dist.broadcast(p.data, src=0)
            p.register_post_accumulate_grad_hook(self.ready)

    def ready(self, p):
        self.bucket.append(p)
        self.size += p.numel()
        if self.size >= self.limit:
            self.flush()

    def flush(self):
        if self.bucket:
            flat = _flatten_dense_tensors([p.grad for p in self.bucket])
            self.flying.append((dist.all_reduce(flat, async_op=True), flat, self.bucket))
            self.bucket, self.size = [], 0

    def finish(self):
        self.flush()
        for work, flat, bucket in self.flying:
            work.wait()
            flat /= dist.get_world_size()
            for p, new in zip(bucket, _unflatten_dense_tensors(flat, [p.grad for p in bucket])):
                p.grad.copy_(new)
        self.flying = []


def write(folder, files=12, rows=60):
    for k in range(files):
        g = torch.Generator().manual_seed(k)
        state = torch.randn(rows, 7, generator=g)
        action = torch.randint(4, (rows,), generator=g)
        reward = (state[:, :4].argmax(1) == action).float() + 0.1 * torch.randn(rows, generator=g)
        torch.save((state, action, reward), os.path.join(folder, f"part-{k:03d}.pt"))


def main():
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    folder = [tempfile.mkdtemp() if rank == 0 else None]
    dist.broadcast_object_list(folder, src=0)
    if rank == 0:
        write(folder[0])
    dist.barrier()
    torch.manual_seed(rank)
    policy = nn.Sequential(nn.Linear(7, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))
    reducer = Bucketed(policy)
    opt = torch.optim.Adam(policy.parameters(), lr=3e-3)
    names = sorted(os.listdir(folder[0]))
    for epoch in range(3):
        order = torch.randperm(len(names), generator=torch.Generator().manual_seed(epoch)).tolist()
        for k in order[rank::world]:
            state, action, reward = torch.load(os.path.join(folder[0], names[k]))
            rows = torch.randperm(len(state), generator=torch.Generator().manual_seed(100 * epoch + k))
            for part in rows.split(20):
                logp = policy(state[part]).log_softmax(-1).gather(1, action[part, None])[:, 0]
                loss = -((reward[part] - 0.25) * logp).mean()
                opt.zero_grad(set_to_none=False)
                loss.backward()
                reducer.finish()
                opt.step()
        if rank == 0:
            print(epoch, loss.item())
    dist.destroy_process_group()


main()
