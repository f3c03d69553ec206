"""Batch normalisation over virtual workers when one pass computes several of them.

The n samples that normalisation sees define the loss (Goyal et al. 2017, section 2.3): a pass over `fuse` workers must
normalise each worker's samples by themselves, as "ghost batches" (Hoffer et al. 2017, section 4). The modules keep
their class, their names and their state; only their `forward` is led through here.

    pass of 3 workers:   x = | 32 samples | 32 samples | 29 samples |         sizes = (32, 32, 29)
                                   |            |            |                 own mean and variance each
                         y = |    y_0     |    y_1     |    y_2     |         one buffer, written in place

    running = running + momentum * (sum_g n_g / N * statistic_g  -  running)  one update a pass

which is the mean, weighted by samples, of what the groups would have made of the running statistics one by one.

Speed on the CPU. `x.split`, `F.batch_norm`, `torch.cat` copy every activation twice more, once forward and once
backward. Here the kernel writes each group's output straight into its place in one buffer; in the backward pass each
group's gradient is copied while it still lies in the cache. Outputs and their gradients are those of split and cat,
bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from squall.errors import InputError

_native_out = torch.ops.aten.native_batch_norm.out
_native_backward = torch.ops.aten.native_batch_norm_backward.default
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class Groups:
    """How the samples of the next pass fall into virtual workers; one object for all modules of a model.

    Copies of the model (`copy.deepcopy`) follow the same object.

    Attributes:
        sizes: samples of each worker, in the order of the batch; with none or one, normalisation is the plain one.
    """

    def __init__(self) -> None:
        self.sizes: tuple[int, ...] = ()
        self._modules: list[_BatchNorm] = []
        self._weights: dict[tuple[Any, ...], torch.Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Groups:
        return self

    def __len__(self) -> int:
        """The number of normalisation modules that follow these groups."""
        return len(self._modules)

    def weights(self, like: torch.Tensor) -> torch.Tensor:
        """Each group's share of the samples, (num_groups, 1), on the device and of the type of `like`."""
        key = (self.sizes, like.dtype, like.device)
        found = self._weights.get(key)
        if found is None:
            shares = torch.tensor(self.sizes, dtype=torch.float64) / sum(self.sizes)
            found = self._weights[key] = shares.unsqueeze(1).to(like)
        return found

    def remove(self) -> None:
        """Gives all modules their own forward pass back."""
        for module in self._modules:
            split = module.__dict__.get("forward")
            if isinstance(split, _Split):
                split.detach()
        self._modules = []


def has_batch_norm(model: nn.Module) -> bool:
    """Whether any module normalises over the batch (so that n matters, and n = 1 may be an error)."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def refuse_synchronised(model: nn.Module) -> None:
    """Raises if a module normalises over processes.

    Raises:
        InputError: a `SyncBatchNorm`: its result would depend on the number of processes.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.SyncBatchNorm):
            raise InputError(
                f"{name or 'the model'} is a SyncBatchNorm",
                [
                    ("rule", "worker_batch_size (n) is what normalisation sees, on any number of processes"),
                    ("to do", "use BatchNorm and set worker_batch_size to the samples that it should see"),
                ],
            )


def split_normalisation(model: nn.Module) -> Groups:
    """Makes every batch normalisation of a model follow `Groups.sizes`, in training mode.

    `InstanceNorm`, `GroupNorm` and `LayerNorm` look at one sample at a time and stay as they are. In evaluation mode
    nothing changes. Applied again to the same model, the new groups take the old ones' place.

    Arguments:
        model: its modules are changed in place; `Groups.remove` undoes it.

    Returns:
        The groups; set `sizes` before each pass.

    Raises:
        InputError: the model holds a `SyncBatchNorm`.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        >>> groups = split_normalisation(model)
        >>> groups.sizes = (8, 8, 5)
        >>> model(torch.randn(21, 3)).shape
        torch.Size([21, 4])
    """
    refuse_synchronised(model)
    groups = Groups()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            present = module.__dict__.get("forward")
            if isinstance(present, _Split):
                present.groups = groups
            else:
                module.__dict__["forward"] = _Split(module, groups, present)
            groups._modules.append(module)
    return groups


class _Split:
    """Stands in for the `forward` of one module; a class of its own so that copying and pickling keep working."""

    __slots__ = ("given", "groups", "module")

    def __init__(self, module: _BatchNorm, groups: Groups, given: Callable[..., torch.Tensor] | None) -> None:
        self.module, self.groups, self.given = module, groups, given

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        module, sizes = self.module, self.groups.sizes
        if len(sizes) < 2 or not module.training:
            return self._plain(x)
        if len(x) != sum(sizes):
            raise _not_these_samples(len(x), sizes)
        if self.given is None and type(module).forward is _BatchNorm.forward:
            module._check_input_dim(x)  # type: ignore[no-untyped-call]
            return _forward(module, x, self.groups)
        return self._one_by_one(x)

    def detach(self) -> None:
        """Takes itself out of the module."""
        if self.given is None:
            del self.module.__dict__["forward"]
        else:
            self.module.__dict__["forward"] = self.given

    def _plain(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = type(self.module).forward(self.module, x) if self.given is None else self.given(x)
        return out

    def _one_by_one(self, x: torch.Tensor) -> torch.Tensor:
        """For modules with a forward pass of their own: each group from the same buffers, then their mean."""
        buffers = self.module._buffers
        start = {name: buffer for name, buffer in buffers.items() if buffer is not None}
        changes = {name: torch.zeros_like(buffer) for name, buffer in start.items()}
        parts = []
        try:
            for part in x.split_with_sizes(self.groups.sizes):
                buffers.update({name: before.clone() for name, before in start.items()})
                parts.append(self._plain(part))
                share = len(part) / len(x)
                for name, before in start.items():
                    after = buffers[name]
                    assert after is not None
                    if before.is_floating_point():
                        changes[name].add_(after - before, alpha=share)
                    else:
                        changes[name] = after - before
        finally:
            buffers.update(start)
        for name, before in start.items():
            before.add_(changes[name])
        return torch.cat(parts)


def _forward(module: _BatchNorm, x: torch.Tensor, groups: Groups) -> torch.Tensor:
    """`_BatchNorm.forward` in training mode, over groups."""
    sizes = groups.sizes
    if min(sizes) == 1 and x.numel() == x.shape[0] * x.shape[1]:
        raise ValueError(f"Expected more than 1 value per channel when training, got a virtual worker of 1 in {sizes}")
    kind = next((t for t in (module.running_mean, module.weight) if t is not None), x)
    # running mean and variance (with momentum 1: the group's own), saved mean and inverse deviation: (4, groups, C);
    # rows begin on cache lines, because the kernel reads them for every pixel
    channels = x.shape[1]
    padded = torch.zeros((4, len(sizes), -(-channels // 16) * 16), dtype=kind.dtype, device=x.device)
    statistics = padded.narrow(2, 0, channels)
    if _fits_kernel(x, module, kind):
        out: torch.Tensor = _Grouped.apply(x, module.weight, module.bias, statistics, sizes, module.eps)  # type: ignore[no-untyped-call]
    else:
        out = torch.cat(
            [
                F.batch_norm(part, mean, variance, module.weight, module.bias, True, 1.0, module.eps)
                for part, mean, variance in zip(x.split_with_sizes(sizes), statistics[0], statistics[1], strict=True)
            ]
        )
    if module.running_mean is not None and module.running_var is not None:
        factor = module.momentum
        if module.num_batches_tracked is not None:
            module.num_batches_tracked.add_(1)
            if factor is None:
                factor = 1.0 / float(module.num_batches_tracked)
        # (2, groups, C) * (groups, 1) -> (2, C)
        mean, variance = (statistics[:2] * groups.weights(statistics)).sum(1)
        module.running_mean.lerp_(mean, factor or 0.0)
        module.running_var.lerp_(variance, factor or 0.0)
    return out


def _fits_kernel(x: torch.Tensor, module: _BatchNorm, kind: torch.Tensor) -> bool:
    """Whether the kernel that writes into given memory serves: on the CPU, statistics in full precision.

    In torch 2.13 it gives wrong numbers for other layouts than the two dense ones.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling() or module.weight is None:
        return False
    if not x.is_contiguous() and (x.dim() not in _LAST or not x.is_contiguous(memory_format=_LAST[x.dim()])):
        return False
    if kind.dtype != module.weight.dtype or kind.dtype not in (torch.float32, torch.float64):
        return False
    return x.dtype == kind.dtype or (x.dtype in (torch.bfloat16, torch.float16) and kind.dtype == torch.float32)


class _Grouped(torch.autograd.Function):
    """Normalises each group of rows of (N, C, ...) by itself, without a copy in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        statistics: torch.Tensor,
        sizes: tuple[int, ...],
        eps: float,
    ) -> torch.Tensor:
        out = torch.empty_like(x)
        for part, into, row in zip(
            x.split_with_sizes(sizes), out.split_with_sizes(sizes), statistics.unbind(1), strict=True
        ):
            running_mean, running_var, mean, inverse = row.unbind()
            _native_out(
                part,
                weight,
                bias,
                running_mean,
                running_var,
                True,
                1.0,
                eps,
                out=into,
                save_mean=mean,
                save_invstd=inverse,
            )
        ctx.save_for_backward(x, weight, statistics)
        ctx.sizes, ctx.eps = sizes, eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, statistics = ctx.saved_tensors
        mask = list(ctx.needs_input_grad[:3])
        grad_x = torch.empty_like(x) if mask[0] else None
        targets = grad_x.split_with_sizes(ctx.sizes) if grad_x is not None else [None] * len(ctx.sizes)
        grad_weight: torch.Tensor | None = None
        grad_bias: torch.Tensor | None = None
        parts, grads = x.split_with_sizes(ctx.sizes), grad_out.split_with_sizes(ctx.sizes)
        # The last group first: what the layer above has just written is still in the cache.
        for group in reversed(range(len(parts))):
            part, grad, target, row = parts[group], grads[group], targets[group], statistics[:, group]
            running_mean, running_var, mean, inverse = row.unbind()
            of_x, of_weight, of_bias = _native_backward(
                grad, part, weight, running_mean, running_var, mean, inverse, True, ctx.eps, mask
            )
            if target is not None:
                target.copy_(of_x)
            if mask[1]:
                grad_weight = of_weight if grad_weight is None else grad_weight.add_(of_weight)
            if mask[2]:
                grad_bias = of_bias if grad_bias is None else grad_bias.add_(of_bias)
        return grad_x, grad_weight, grad_bias, None, None, None


def _not_these_samples(found: int, sizes: tuple[int, ...]) -> InputError:
    return InputError(
        f"batch normalisation sees {found} rows in a pass of {sum(sizes)} samples",
        [
            ("found", "a model that folds another axis into the batch (frames, patches, crops)"),
            ("rule", "with fuse above 1 each virtual worker's rows must be told apart"),
            ("to do", "compute.fuse = 1"),
        ],
    )
