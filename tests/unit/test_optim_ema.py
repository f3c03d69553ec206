"""The average of the weights: its textbook sum, what is averaged, swapping, storing."""

import pytest
import torch
from torch import Tensor, nn

from squall.errors import InputError
from squall.optim.ema import Ema


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def change(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for _, tensor in tensors(model):
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
            else:
                tensor += 1


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.9998])
def test_is_the_weighted_sum_of_all_weights_seen(decay: float) -> None:
    """Textbook: sum over s of (1 - d_s) prod over later t of d_t, times w_s. The initial weights have weight 0."""
    weight = torch.full((1,), 1e6, dtype=torch.float64)  # the initial value must leave no trace
    ema = Ema([("w", weight)], decay)
    seen = [float(torch.sin(torch.tensor(step + 1.0))) for step in range(40)]
    for value in seen:
        weight.fill_(value)
        ema.update()
    factors = [min(decay, t / (t + 9)) for t in range(40)]
    shares = [(1 - factors[s]) * float(torch.tensor(factors[s + 1 :], dtype=torch.float64).prod()) for s in range(40)]
    assert sum(shares) == pytest.approx(1)
    expected = sum(share * value for share, value in zip(shares, seen, strict=True))
    assert ema.averages["w"].item() == pytest.approx(expected, abs=1e-9)


def test_a_long_run_follows_the_plain_recurrence() -> None:
    weight = torch.zeros(3, dtype=torch.float64)
    ema = Ema([("w", weight)], 0.9)
    for step in range(200):
        weight.fill_(step)
        before = ema.averages["w"].clone()
        ema.update()
        if step >= 81:  # 81 / 90 = 0.9: the warm-up is over
            torch.testing.assert_close(ema.averages["w"], 0.9 * before + 0.1 * weight)
    assert ema.averages["w"][0].item() == pytest.approx(199 - 9, abs=0.01)


def test_constant_weights_are_their_own_average_bit_for_bit() -> None:
    model = net()
    ema = Ema(tensors(model), 0.999)
    for _ in range(5):
        ema.update()
    assert all(torch.equal(ema.averages[name], tensor) for name, tensor in model.named_parameters())


def test_floating_point_buffers_are_averaged_and_integers_left_alone() -> None:
    model = net()
    ema = Ema(tensors(model), 0.9)
    assert set(ema.averages) == {n for n, _ in tensors(model)} - {"1.num_batches_tracked"}
    for step in range(3):
        change(model, step)
        ema.update()
    with ema.swapped():
        assert model[1].num_batches_tracked.item() == 3
        assert torch.equal(model[1].running_mean, ema.averages["1.running_mean"])


def test_inside_swapped_the_model_computes_with_the_averages_and_after_it_with_its_own_bits() -> None:
    model = net()
    ema = Ema(tensors(model), 0.9)
    for step in range(4):
        change(model, step)
        model[1].running_var.abs_()
        ema.update()
    mine = {name: tensor.clone() for name, tensor in tensors(model)}
    places = {name: tensor.data_ptr() for name, tensor in tensors(model)}
    twin = net()
    twin.load_state_dict(ema.averages, strict=False)
    images = torch.ones(2, 1, 4, 4)
    with ema.swapped():
        assert torch.equal(model.eval()(images), twin.eval()(images))
    assert all(torch.equal(tensor, mine[name]) for name, tensor in tensors(model))
    assert places == {name: tensor.data_ptr() for name, tensor in tensors(model)}  # flat views stay views


def test_an_exception_inside_swapped_still_puts_the_weights_back() -> None:
    model = net()
    ema = Ema(tensors(model), 0.9)
    change(model, 0)
    mine = model[3].weight.detach().clone()
    with pytest.raises(ZeroDivisionError), ema.swapped():
        raise ZeroDivisionError
    assert torch.equal(model[3].weight, mine)


def test_half_precision_weights_are_averaged_in_float32() -> None:
    """In bfloat16, 1 + 0.001 is 1: the average would never move."""
    weight = torch.ones(4, dtype=torch.bfloat16)
    ema = Ema([("w", weight)], 0.999)
    ema.load(ema.averages, num_updates=100_000)
    weight.fill_(1.5)
    for _ in range(10):
        ema.update()
    assert ema.averages["w"].dtype == torch.float32
    assert ema.averages["w"][0].item() == pytest.approx(1.5 - 0.5 * 0.999**10, rel=1e-6)
    with ema.swapped():
        assert weight.dtype == torch.bfloat16


def test_a_stored_average_goes_on_bit_for_bit() -> None:
    model = net()
    whole = Ema(tensors(model), 0.99)
    restored = Ema(tensors(model), 0.99)
    for step in range(6):
        if step == 3:
            restored.load({name: average.clone() for name, average in whole.averages.items()}, whole.num_updates)
        change(model, step)
        whole.update()
        if step >= 3:
            restored.update()
    assert all(torch.equal(average, restored.averages[name]) for name, average in whole.averages.items())


def test_another_models_averages_are_refused_with_every_difference() -> None:
    ema = Ema([("a", torch.zeros(2)), ("b", torch.zeros(3))], 0.9)
    with pytest.raises(InputError) as caught:
        ema.load({"b": torch.zeros(4), "c": torch.zeros(1)}, 5)
    assert [label for label, _ in caught.value.rows] == ["a", "c", "b"]
    assert ema.num_updates == 0


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0, float("nan")])
def test_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(InputError, match="ema="):
        Ema([], decay)


def test_tensors_under_two_names_are_put_back_too() -> None:
    weight = torch.ones(2)
    ema = Ema([("a", weight), ("b", weight)], 0.5)
    weight.fill_(3.0)
    ema.update()
    ema.update()
    weight.fill_(5.0)
    with ema.swapped():
        assert weight.tolist() == [3.0, 3.0]
    assert weight.tolist() == [5.0, 5.0]
