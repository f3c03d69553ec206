"""The checks, in the order of the table: each is a function of a `Training` that gives one `Finding`."""

from __future__ import annotations

from collections.abc import Callable

from squall.verify.checks.accumulation import accumulation
from squall.verify.checks.augmentation import augmentation
from squall.verify.checks.clipping import clipping
from squall.verify.checks.decay import weight_decay
from squall.verify.checks.finite import non_finite
from squall.verify.checks.gradient import gradient
from squall.verify.checks.measuring import evaluation
from squall.verify.checks.mode import mode
from squall.verify.checks.momentum import momentum
from squall.verify.checks.network import batch_statistics, parameters, weights
from squall.verify.checks.rate import rate
from squall.verify.checks.repeating import determinism
from squall.verify.checks.resume import Resumed, resume
from squall.verify.checks.samples import coverage, order
from squall.verify.checks.scaling import loss_scaling
from squall.verify.checks.training import Training
from squall.verify.checks.weighting import weighting
from squall.verify.finding import Finding

__all__ = ["BY_NAME", "Resumed", "Training", "resume"]

BY_NAME: dict[str, Callable[[Training], Finding]] = {
    "gradient": gradient,
    "accumulation": accumulation,
    "loss weighting": weighting,
    "weight decay": weight_decay,
    "momentum": momentum,
    "clipping": clipping,
    "loss scaling": loss_scaling,
    "non-finite": non_finite,
    "rate": rate,
    "epoch coverage": coverage,
    "epoch order": order,
    "augmentation": augmentation,
    "parameters": parameters,
    "mode": mode,
    "batch statistics": batch_statistics,
    "weights": weights,
    "evaluation": evaluation,
    "determinism": determinism,
}
