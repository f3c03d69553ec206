# No data set and no loader: each step draws a global batch from a tensor, and each rank takes its rows.
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
g = torch.Generator().manual_seed(0)
X = torch.randn(2000, 10, generator=g)
Y = torch.tanh(X @ torch.randn(10, 2, generator=g)) + 0.05 * torch.randn(2000, 2, generator=g)

torch.manual_seed(42)
net = torch.nn.Sequential(torch.nn.Linear(10, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2))
for p in net.parameters():
    dist.broadcast(p.data, 0)
opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
STEPS, LOCAL = 80, 16

for step in range(STEPS):
    for group in opt.param_groups:  # polynomial decay
        group["lr"] = 0.1 * (1 - step / STEPS) ** 0.9
    draw = torch.Generator().manual_seed(10_000 + step)
    index = torch.randint(len(X), (LOCAL * world,), generator=draw)[rank::world]
    x, y = X[index], Y[index]
    loss = 0.5 * (net(x) - y).pow(2).mean()
    grads = torch.autograd.grad(loss, list(net.parameters()))
    flat = torch.cat([t.reshape(-1) for t in grads])
    dist.all_reduce(flat)
    flat /= world
    at = 0
    for p in net.parameters():
        p.grad = flat[at : at + p.numel()].view_as(p).clone()
        at += p.numel()
    opt.step()
    if rank == 0 and step % 20 == 0:
        print(step, loss.item())
dist.destroy_process_group()
