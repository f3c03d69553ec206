"""The rules by which a parameter server applies what it is sent: sgd, adagrad, rmsprop.

A shard owns a slice of the flat vector, cut into the pieces of the parameters in it, and applies a rule to each. The
rules are torch's own classes over these pieces, the kernels the same as on one device: they work element by element, so
that a slice gives the same bits as the whole. Dean et al. 2012, section 4.1: a fixed rate, or Adagrad, whose rate is
gamma / sqrt(sum of squares of all gradients so far, the current one included), without an epsilon::

    w <- w - rate * g                      sgd
    h <- h + g^2;  w <- w - rate * g / sqrt(h)     adagrad: the first step is +-rate in every coordinate; 0/0 is 0

What is sent is the sum of a few minibatches' gradients, raw. Decay belongs to each of them, so it comes once a
minibatch: g + minibatches * decay * w.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from squall.optim.build import RULES

SERVER_RULES = ("sgd", "adagrad", "rmsprop")


@dataclass(frozen=True)
class RuleSpec:
    """Which rule, and its numbers.

    Attributes:
        name: one of `SERVER_RULES`.
        momentum: of sgd and rmsprop; 0 unless somebody asks for it, as stale pushes act like momentum already.
        eps: of adagrad and rmsprop; None: the rule's default (adagrad: 1e-20, none that shows).
    """

    name: str = "sgd"
    momentum: float = 0.0
    eps: float | None = None


class ServerRule:
    """A rule over pieces of a vector, with its state.

    Arguments:
        spec: which.
        weights: the pieces, views of the slice; changed in place.
        lr_scale, decay: of each piece.
    """

    def __init__(
        self, spec: RuleSpec, weights: Sequence[torch.Tensor], lr_scale: Sequence[float], decay: Sequence[float]
    ) -> None:
        rule = RULES[spec.name]
        self._pieces = [torch.nn.Parameter(piece) for piece in weights]
        alike: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
        for piece, treated in zip(self._pieces, zip(lr_scale, decay, strict=True), strict=True):
            alike.setdefault(treated, []).append(piece)
        self._treated = list(alike)
        options = dict(rule.defaults)
        if spec.momentum:
            options["momentum"] = spec.momentum
        if spec.eps is not None:
            options["eps"] = spec.eps
        if rule.fused and all(piece.device.type in rule.fused for piece in weights):
            options["fused"] = True
        groups = [{"params": pieces} for pieces in alike.values()]
        self._optimizer = rule.make(groups, lr=0.0, **options) if groups else None  # a slice of buffers only

    def apply(self, gradients: Sequence[torch.Tensor | None], rate: float, minibatches: int) -> None:
        """One update.

        Arguments:
            gradients: of each piece, the sum over minibatches of their means; None: the piece is left alone.
            rate: of the minibatches.
            minibatches: how many the sum holds.
        """
        if self._optimizer is None:
            return
        for piece, gradient in zip(self._pieces, gradients, strict=True):
            piece.grad = gradient
        for group, (scale, decay) in zip(self._optimizer.param_groups, self._treated, strict=True):
            group["lr"], group["weight_decay"] = rate * scale, decay * minibatches
        self._optimizer.step()
        for piece in self._pieces:
            piece.grad = None

    def state(self) -> dict[str, torch.Tensor]:
        """A copy of the state, by "piece.name"."""
        return {
            f"{index}.{key}": value.clone()
            for index, piece in enumerate(self._pieces)
            for key, value in (self._optimizer.state.get(piece, {}) if self._optimizer else {}).items()
            if isinstance(value, torch.Tensor)
        }

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Takes a state over that `state` gave."""
        for index, piece in enumerate(self._pieces):
            assert self._optimizer is not None
            own = self._optimizer.state[piece]
            for key in [name.partition(".")[2] for name in state if name.partition(".")[0] == str(index)]:
                own[key] = state[f"{index}.{key}"].clone()
