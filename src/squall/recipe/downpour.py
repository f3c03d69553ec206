"""The table [downpour]: asynchronous SGD with a parameter server (Dean et al. 2012, section 4.1).

Replicas of the model fetch the weights from shards, compute gradients of minibatches of their own, and push them; each
shard applies what comes, when it comes. Our names and the paper's letters::

    replicas      the paper's model replicas      worker_batch_size   one replica's minibatch
    shards        of the parameter server         optimizer, lr       the shards' rule; eta, or Adagrad's gamma
    fetch_every   n_fetch                         local_lr            alpha
    push_every    n_push                          warm_start          warmstarting (section 4.1, end)
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from squall.recipe.base import Count, NotNegative, Spec, Time
from squall.units import Duration, to_seconds


def _warm_start(value: Any) -> Any:
    """Refuses what is no number of epochs or whole minibatches."""
    rule = 'epochs or minibatches of the run, over all replicas: "1ep", "500step"; "0ep" for none'
    try:
        duration = Duration.parse(value) if isinstance(value, str) else None
    except ValueError:
        duration = None
    if duration is None or duration.unit == "second" or (duration.unit == "step" and duration.amount % 1):
        raise ValueError(rule)
    return value


class DownpourSpec(Spec):
    """Who computes and who holds the weights, how often they talk, and what is waited for."""

    replicas: Count = Field(description="copies of the model that compute gradients (R)")
    shards: Count = Field(default=1, description="parts of the parameter server, each with a slice of the weights (S)")
    fetch_every: Count = Field(default=1, description="minibatches of a replica between fetches of the weights")
    push_every: Count = Field(default=1, description="minibatches of a replica between pushes of its summed gradients")
    local_lr: Literal["rate"] | NotNegative | None = Field(
        default=None,
        description="rate of a replica's own steps between fetches (alpha): \"rate\" (the run's; default with sgd) or "
        "a number, else 0",
    )
    warm_start: Annotated[str, BeforeValidator(_warm_start)] = Field(
        default="0ep", description='one replica trains alone first: "1ep" or "500step", of minibatches'
    )
    max_staleness: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="a push whose weights are older than so many updates is dropped; no cap unless given"
    )
    lease_timeout: Time = Field(
        default="60s", description="a unit of work that is not reported within this time is handed out again"
    )

    @property
    def lease_seconds(self) -> float:
        """`lease_timeout` in seconds."""
        return to_seconds(self.lease_timeout)

    def warm_minibatches(self, steps_per_epoch: int) -> int:
        """Minibatches that one replica computes alone, before the others begin.

        Arguments:
            steps_per_epoch: minibatches of an epoch (`Order.steps_per_epoch`).
        """
        duration = Duration.parse(self.warm_start)
        return math.ceil(duration.amount * (steps_per_epoch if duration.unit == "epoch" else 1))

    @property
    def own_rate(self) -> float | None:
        """`local_lr` as a number; None: the run's rate at each minibatch."""
        return None if self.local_lr == "rate" else self.local_lr
