"""LARS and LAMB: every tensor gets its own rate, in proportion to the ratio of its norm to its step's.

With a large minibatch one global rate is too large for some layers and too small for others; what matters is how far a
step goes compared with the weights it changes. Both rules set that ratio per tensor::

    LARS (You, Gitman and Ginsburg 2017, Algorithm 1)       LAMB (You et al. 2019, Algorithm 2)
    ratio = eta |w| / (|g| + decay |w|)                     r     = m_hat / (sqrt(v_hat) + eps) + decay w
    u     = momentum u + ratio (g + decay w)                ratio = |w| / |r|
    w     = w - lr u                                        w     = w - lr ratio r

LARS here keeps its buffer free of the rate, as PyTorch's SGD does; the paper's has the rate inside (they agree while
the rate is constant, and Goyal et al.'s momentum correction, remark 2, makes them agree always). Tensors of one
dimension (biases, normalisation) and groups with ``adapt=False`` have ratio 1, and so has a tensor whose norm or
gradient is 0. Norms are over whole tensors by a fixed tree (`squall.optim.norms`) and every other operation rounds
once, so on one kind of processor the bits depend on the values alone: not on threads, memory formats or places in a
buffer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from squall.errors import InputError
from squall.optim.norms import norm

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]]


class _LayerWise(Optimizer, ABC):
    """The walk over parameters that both rules share; a parameter without a gradient is left alone."""

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update by the gradients in `.grad`.

        Arguments:
            closure: computes the loss again, with gradients, before the update; seldom needed.

        Returns:
            The closure's loss, or None.

        Raises:
            InputError: a gradient is sparse; a norm over the whole tensor would make it dense.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is None:
                        continue
                    if parameter.grad.is_sparse:
                        raise InputError(
                            f"{type(self).__name__} has no rule for sparse gradients",
                            [("to do", "make the embedding with sparse=False, or take optimizer.name=adagrad")],
                        )
                    self._update(parameter, parameter.grad, group, self.state[parameter])
        return loss

    @abstractmethod
    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        """Changes one parameter and its state in place."""


class LARS(_LayerWise):
    """SGD with momentum whose steps are scaled per tensor.

    Arguments:
        params: tensors or groups; a group may say ``adapt=False``.
        lr: gamma of the paper, the global rate.
        momentum: m, in [0, 1).
        nesterov: step along g + momentum u in place of u.
        weight_decay: beta, inside the ratio.
        trust_coefficient: eta, how far a step may go compared with the weights.
        eps: added to the ratio's denominator.

    Source: You, Gitman and Ginsburg 2017, Algorithm 1.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        eps: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
            "adapt": True,
        }
        super().__init__(params, defaults)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        decay, momentum = group["weight_decay"], group["momentum"]
        direction = parameter * decay
        direction += gradient
        if _adapted(parameter, group):
            size, slope = norm(parameter), norm(gradient)
            ratio = group["trust_coefficient"] * size / (slope + decay * size + group["eps"])
            direction *= _or_one(ratio, size, slope)
        if momentum:
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            buffer = state["momentum_buffer"]
            buffer *= momentum
            buffer += direction
            if group["nesterov"]:
                direction += buffer * momentum
            else:
                direction = buffer
        parameter -= direction * group["lr"]


class LAMB(_LayerWise):
    """Adam with decoupled decay whose steps are scaled per tensor.

    Arguments:
        params: tensors or groups; a group may say ``adapt=False``.
        lr: eta of the paper, the global rate: |step| = lr |w| for an adapted tensor.
        betas: decay rates of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: lambda, inside the ratio.

    Source: You et al. 2019, Algorithm 2, with phi the identity.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "adapt": True}
        super().__init__(params, defaults)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        if not state:
            state["step"] = torch.zeros(())  # on the host, so that reading it waits for no device
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        first, second = state["exp_avg"], state["exp_avg_sq"]
        beta1, beta2 = group["betas"]
        state["step"] += 1
        count = int(state["step"])

        first *= beta1
        first += gradient * (1 - beta1)
        second *= beta2
        second += (gradient * gradient) * (1 - beta2)
        root = (second / (1 - beta2**count)).sqrt()
        root += group["eps"]
        direction = first / (1 - beta1**count)
        direction /= root
        direction += parameter * group["weight_decay"]
        if _adapted(parameter, group):
            size, length = norm(parameter), norm(direction)
            direction *= _or_one(size / length, size, length)
        parameter -= direction * group["lr"]


def _adapted(parameter: Tensor, group: dict[str, Any]) -> bool:
    return parameter.ndim > 1 and bool(group["adapt"])


def _or_one(ratio: Tensor, *norms: Tensor) -> Tensor:
    """The ratio, or 1 where one of the norms is 0 (a fresh tensor of zeros could never leave them otherwise)."""
    positive = torch.stack(norms).min() > 0
    return torch.where(positive, ratio, torch.ones_like(ratio))
