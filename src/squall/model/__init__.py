"""Networks and what is done to a network before it trains.

`build` makes a network from a recipe's `[model]` table; `names` lists those that ship. Neither imports torch before a
network is built. The parts: `resnet`, `mlp` and `acoustic` (networks), `ghostnorm` (normalisation over virtual
workers), `weights` (safetensors in and out, freezing).
"""

from squall.model.registry import build, names

__all__ = ["build", "names"]
