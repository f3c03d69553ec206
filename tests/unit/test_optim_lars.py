"""LARS, LAMB and their norms: ratios per tensor, form of the momentum, and bits that depend on the values alone.

The textbook twins of both rules stand in the table of test_optim_rules.py.
"""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from squall.errors import InputError
from squall.optim.lars import LAMB, LARS
from squall.optim.norms import norm

RULES = [
    pytest.param(lambda p: LARS(p, lr=0.5, momentum=0.9, nesterov=True, weight_decay=1e-4), id="lars"),
    pytest.param(lambda p: LAMB(p, lr=0.01, weight_decay=0.01), id="lamb"),
]
Make = Callable[[list[Tensor]], torch.optim.Optimizer]


@pytest.fixture
def threads_put_back() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def after_steps(make: Make, weight: Tensor, gradients: list[Tensor]) -> Tensor:
    parameter = nn.Parameter(weight)
    optimizer = make([parameter])
    for gradient in gradients:
        parameter.grad = gradient
        optimizer.step()
    return parameter.detach()


class TestNorm:
    @pytest.mark.parametrize("size", [0, 1, 2, 4095, 4096, 4097, 100_003])
    def test_is_the_exactly_rounded_sum(self, size: int) -> None:
        values = random(size)
        assert norm(values).item() == pytest.approx(math.sqrt(math.fsum(v * v for v in values.tolist())), rel=1e-15)

    def test_threads_do_not_touch_it(self, threads_put_back: None) -> None:
        tensors = [random(200_003, seed=seed) for seed in range(20)]
        seen, plain = set(), set()
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            seen.add(tuple(norm(values).item() for values in tensors))
            plain.add(tuple(values.double().square().sum().sqrt().item() for values in tensors))
        assert len(seen) == 1
        assert len(plain) > 1  # what it protects from: a plain sum changes, in float64 too

    def test_memory_format_and_place_do_not_touch_it(self) -> None:
        values = random(16, 8, 3, 3)
        buffer = torch.zeros(values.numel() + 7)
        buffer[7:] = values.ravel()
        same = [values, values.to(memory_format=torch.channels_last), buffer[7:].view(16, 8, 3, 3)]
        assert len({norm(x).item() for x in same}) == 1

    def test_does_not_overflow_where_float32_would(self) -> None:
        assert norm(torch.full((3, 3), 1e30)).item() == pytest.approx(3e30)


class TestBits:
    @pytest.mark.parametrize("make", RULES)
    def test_threads_do_not_touch_the_weights(self, make: Make, threads_put_back: None) -> None:
        weight, gradients = random(300, 401), [random(300, 401, seed=seed) for seed in (1, 2, 3)]
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(after_steps(make, weight.clone(), gradients))
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])

    @pytest.mark.parametrize("make", RULES)
    def test_place_format_and_neighbours_do_not_touch_the_weights(self, make: Make) -> None:
        weight, gradients = random(6, 5, 3, 3), [random(6, 5, 3, 3, seed=seed) for seed in (1, 2, 3)]
        alone = after_steps(make, weight.clone(), gradients)

        buffer = torch.zeros(weight.numel() + 3)
        view = buffer[3:].view_as(weight).copy_(weight)
        assert torch.equal(after_steps(make, view, gradients), alone)

        last = torch.channels_last
        formatted = after_steps(make, weight.clone(memory_format=last), [g.to(memory_format=last) for g in gradients])
        assert torch.equal(formatted, alone)

        parameters = [nn.Parameter(random(8, 8)), nn.Parameter(weight.clone()), nn.Parameter(random(9))]
        optimizer = make(parameters)
        for gradient in gradients:
            for parameter in parameters:
                parameter.grad = torch.ones_like(parameter)
            parameters[1].grad = gradient
            optimizer.step()
        assert torch.equal(parameters[1].detach(), alone)


class TestRatios:
    def test_lars_does_not_feel_the_scale_of_the_gradient(self) -> None:
        weight, gradient = random(4, 5).double(), random(4, 5, seed=1).double()
        small, large = (
            after_steps(lambda p: LARS(p, lr=1.0), weight.clone(), [gradient * scale]) for scale in (1e-3, 1e3)
        )
        torch.testing.assert_close(small, large, rtol=1e-12, atol=0)

    def test_lars_moves_a_layer_by_the_trust_coefficient(self) -> None:
        weight = random(4, 5).double()
        moved = after_steps(
            lambda p: LARS(p, lr=1.0, trust_coefficient=0.02), weight.clone(), [random(4, 5, seed=1).double()]
        )
        assert (moved - weight).norm().item() == pytest.approx(0.02 * weight.norm().item())

    def test_lamb_moves_a_layer_by_the_rate_whatever_its_size(self) -> None:
        for scale in (1e-3, 1.0, 1e3):
            weight = random(4, 5).double() * scale
            moved = after_steps(lambda p: LAMB(p, lr=0.01), weight.clone(), [random(4, 5, seed=1).double()])
            assert (moved - weight).norm().item() == pytest.approx(0.01 * weight.norm().item())

    @pytest.mark.parametrize("shape", [(6,), ()])
    def test_biases_and_scales_take_the_plain_step(self, shape: tuple[int, ...]) -> None:
        weight, gradients = random(*shape).double(), [random(*shape, seed=seed).double() for seed in (1, 2)]
        for layer_wise, plain in (
            (lambda p: LARS(p, lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
            (lambda p: LAMB(p, lr=0.1), lambda p: torch.optim.AdamW(p, lr=0.1, eps=1e-6, weight_decay=0)),
        ):
            one, other = (
                after_steps(layer_wise, weight.clone(), gradients),
                after_steps(plain, weight.clone(), gradients),
            )
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)

    def test_a_group_may_refuse_adaption(self) -> None:
        weight, gradient = random(3, 4).double(), random(3, 4, seed=1).double()
        moved = after_steps(lambda p: LARS([{"params": p, "adapt": False}], lr=0.1), weight.clone(), [gradient])
        torch.testing.assert_close(moved, weight - 0.1 * gradient)

    @pytest.mark.parametrize("make", RULES)
    def test_a_layer_of_zeros_leaves_zero_and_a_gradient_of_zeros_stays_finite(self, make: Make) -> None:
        """Ratio 1, not 0 and not 0/0: the last gamma and many heads begin at zero."""
        assert after_steps(make, torch.zeros(3, 4), [random(3, 4)]).abs().min() > 0
        assert after_steps(make, random(3, 4), [torch.zeros(3, 4)]).isfinite().all()
        assert torch.equal(after_steps(make, torch.zeros(3, 4), [torch.zeros(3, 4)]), torch.zeros(3, 4))


class TestMomentumForm:
    """The paper's Algorithm 1 has the rate inside the buffer; ours is its corrected form (Goyal et al., remark 2)."""

    @staticmethod
    def paper(weight: Tensor, gradients: list[Tensor], rates: list[float], corrected: bool) -> Tensor:
        w, v, old = weight.clone(), torch.zeros_like(weight), rates[0]
        for g, rate in zip(gradients, rates, strict=True):
            local = 0.001 * w.norm() / (g.norm() + 1e-4 * w.norm())
            v = 0.9 * (rate / old if corrected else 1.0) * v + rate * local * (g + 1e-4 * w)
            w, old = w - v, rate
        return w

    @staticmethod
    def ours(weight: Tensor, gradients: list[Tensor], rates: list[float]) -> Tensor:
        parameter = nn.Parameter(weight.clone())
        optimizer = LARS([parameter], lr=0.0, momentum=0.9, weight_decay=1e-4)
        for gradient, rate in zip(gradients, rates, strict=True):
            parameter.grad, optimizer.param_groups[0]["lr"] = gradient, rate
            optimizer.step()
        return parameter.detach()

    def test_equal_at_a_constant_rate_and_after_correction_on_a_ramp(self) -> None:
        weight, gradients = random(5, 6).double(), [random(5, 6, seed=seed).double() for seed in range(1, 11)]
        flat, ramp = [8.0] * 10, [float(step) for step in range(1, 11)]
        for rates, corrected in ((flat, False), (ramp, True)):
            expected = self.paper(weight, gradients, rates, corrected)
            torch.testing.assert_close(self.ours(weight, gradients, rates), expected, rtol=1e-11, atol=1e-13)
        uncorrected = self.paper(weight, gradients, ramp, corrected=False)
        assert (self.ours(weight, gradients, ramp) - uncorrected).abs().max() > 1e-3


@pytest.mark.parametrize("make", RULES)
def test_sparse_gradients_are_refused_with_a_remedy(make: Make) -> None:
    embedding = nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(InputError, match="sparse=False"):
        make(list(embedding.parameters())).step()


@pytest.mark.parametrize("make", RULES)
def test_a_closure_is_called_once_with_gradients_on(make: Make) -> None:
    layer = nn.Linear(3, 1)
    before = layer.weight.detach().clone()

    def closure() -> float:
        loss = layer(torch.ones(2, 3)).square().sum()
        loss.backward()
        return loss.item()

    expected = layer(torch.ones(2, 3)).square().sum().item()
    assert make(list(layer.parameters())).step(closure) == expected  # type: ignore[arg-type]
    assert not torch.equal(layer.weight, before)
