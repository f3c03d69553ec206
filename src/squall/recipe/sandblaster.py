"""The table [sandblaster]: L-BFGS on shards, over the whole training set (Dean et al. 2012, section 4.2).

Replicas compute gradients of portions of the batch, shards hold the vectors of L-BFGS, a coordinator tells both what to
do next. Our names and the paper's words::

    worker_batch_size   a portion's samples: one forward and backward pass
    unit                portions that a replica computes and pushes at once: the paper's small portions of work
    epochs              evaluations of the batch, at most; each is one pass over the training set
    history             pairs of L-BFGS; backups: the paper's copies of the slowest portions

There is no rate: a line search finds the length of each step. Decay is part of the function that is minimised.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from squall.recipe.base import Count, Fraction, NotNegative, Spec, Time
from squall.units import to_seconds

_ARMIJO_DAMPING = 0.2  # without a condition on slopes many a pair would have no curvature: Nocedal & Wright, 18.3


class SandblasterSpec(Spec):
    """Who computes and who holds the vectors, how L-BFGS goes, and when it is over."""

    replicas: Count = Field(description="copies of the model that compute gradients")
    shards: Count = Field(default=1, description="parts of the vectors of L-BFGS, each a slice of all of them")
    unit: Count = Field(default=4, description="portions that a replica computes and pushes at once")
    history: Count = Field(default=10, description="pairs of L-BFGS (m)")
    line_search: Literal["strong_wolfe", "armijo"] = Field(
        default="strong_wolfe", description="what a step must fulfil: a lower value, and with strong_wolfe a flat slope"
    )
    damping: Fraction | None = Field(
        default=None,
        description="a pair's curvature is lifted to this share of the one believed in; 0.2 with armijo, else 0: left "
        "out where there is none",
    )
    noise: NotNegative = Field(
        default=1e-7, description="relative error of the loss that the line search forgives: what rounding does to it"
    )
    tolerance_gradient: NotNegative = Field(
        default=1e-5, description="converged where the gradient's norm is not above it"
    )
    tolerance_step: NotNegative = Field(
        default=0.0, description="converged where a step is not longer than this share of the weights"
    )
    backups: bool = Field(default=True, description="idle replicas compute copies of what takes long")
    lease_timeout: Time = Field(
        default="60s", description="a unit of work that is not reported within this time is handed out again"
    )

    @property
    def lease_seconds(self) -> float:
        """`lease_timeout` in seconds."""
        return to_seconds(self.lease_timeout)

    @property
    def own_damping(self) -> float:
        """`damping` as a number."""
        if self.damping is not None:
            return self.damping
        return _ARMIJO_DAMPING if self.line_search == "armijo" else 0.0
