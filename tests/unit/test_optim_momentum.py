"""Momentum, decay and loss scale: checks G2 and G3 of Goyal et al. (remarks 1 to 3), at the level of the optimiser."""

import numpy as np
import pytest
import torch
from torch import nn

from squall.optim import Rate
from squall.optim.build import build
from squall.optim.groups import set_rate

RAMP = Rate(base=0.05, base_batch_size=32, warmup_epochs=5)
RATES = [RAMP.at(step / 4, global_batch_size=256, epochs=10) for step in range(40)]
MOMENTUM = 0.9


def problem() -> tuple[np.ndarray, np.ndarray]:
    """A quadratic, 1/2 (w - b)' A (w - b), whose gradient depends on where one is."""
    generator = np.random.default_rng(0)
    half = generator.normal(size=(6, 6))
    return half @ half.T / 12, generator.normal(size=6)


def ours(loss_scale: float = 1.0, rate_scale: float = 1.0, weight_decay: float = 0.0) -> np.ndarray:
    curvature, target = (torch.from_numpy(x) for x in problem())
    model = nn.Linear(6, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(1.0)
    optimizer = build(model, name="sgd", lr=0.0, momentum=MOMENTUM, weight_decay=weight_decay)
    for rate in RATES:
        optimizer.zero_grad()
        offset = model.weight[0] - target
        (loss_scale * 0.5 * offset @ curvature @ offset).backward()
        set_rate(optimizer, rate * rate_scale)
        optimizer.step()
    return model.weight.detach().numpy()[0].copy()


def form_9() -> np.ndarray:
    """u' = m u + g;  w' = w - rate u'."""
    curvature, target = problem()
    w, u = np.ones(6), np.zeros(6)
    for rate in RATES:
        u = MOMENTUM * u + curvature @ (w - target)
        w = w - rate * u
    return w


def form_10(corrected: bool) -> np.ndarray:
    """v' = m v + rate g;  w' = w - v'.  Corrected: v' = m (rate_new / rate_old) v + rate_new g."""
    curvature, target = problem()
    w, v, old = np.ones(6), np.zeros(6), RATES[0]
    for rate in RATES:
        v = MOMENTUM * (rate / old if corrected else 1.0) * v + rate * (curvature @ (w - target))
        w, old = w - v, rate
    return w


class TestG3:
    def test_our_momentum_is_form_9(self) -> None:
        np.testing.assert_allclose(ours(), form_9(), rtol=1e-12, atol=1e-14)

    def test_form_9_is_the_corrected_form_10(self) -> None:
        np.testing.assert_allclose(form_9(), form_10(corrected=True), rtol=1e-10, atol=1e-12)

    def test_the_uncorrected_form_10_is_another_rule_on_a_ramp(self) -> None:
        assert np.abs(form_9() - form_10(corrected=False)).max() > 1e-2

    def test_correcting_form_9_once_more_would_be_a_bug(self) -> None:
        """pytorch#1099: the correction scales a buffer that has no rate in it."""
        curvature, target = problem()
        w, u, old = np.ones(6), np.zeros(6), RATES[0]
        for rate in RATES:
            u = MOMENTUM * (rate / old) * u + curvature @ (w - target)
            w, old = w - rate * u, rate
        assert np.abs(w - ours()).max() > 1e-2


class TestG2:
    def test_without_decay_scaling_the_loss_is_scaling_the_rate(self) -> None:
        np.testing.assert_allclose(ours(loss_scale=0.5), ours(rate_scale=0.5), rtol=1e-12, atol=1e-14)

    def test_with_decay_scaling_the_loss_is_not_scaling_the_rate(self) -> None:
        """Remark 1: the decay term is not scaled with the loss."""
        scaled_loss, scaled_rate = (ours(**{key: 0.5}, weight_decay=0.1) for key in ("loss_scale", "rate_scale"))
        assert np.abs(scaled_loss - scaled_rate).max() > 1e-3

    @pytest.mark.parametrize(("decay", "same"), [(0.0, True), (0.1, False)])
    def test_cancelling_k_is_wrong_because_of_decay(self, decay: float, same: bool) -> None:
        """Remark 3: rate eta and loss / n in place of rate k eta and loss / (k n)."""
        k = 4.0
        right, cancelled = ours(weight_decay=decay), ours(loss_scale=k, rate_scale=1 / k, weight_decay=decay)
        assert bool(np.allclose(right, cancelled, rtol=1e-9, atol=1e-12)) is same
