"""The acoustic model of Dean et al. 2012, section 5: its size, its arithmetic, its first weights."""

import math
from itertools import pairwise

import pytest
import torch

from squall.errors import InputError
from squall.model import build

SPEECH = {"in_features": 440, "hidden": [2560] * 4, "num_classes": 8192}


def test_the_papers_network_has_the_papers_parameters():
    with torch.device("meta"):
        model = build("acoustic", SPEECH)
    sizes = [440, 2560, 2560, 2560, 2560, 8192]
    by_hand = sum(inputs * outputs + outputs for inputs, outputs in pairwise(sizes))
    assert sum(p.numel() for p in model.parameters()) == by_hand == 41_777_152


def test_the_output_is_that_of_sigmoid_layers_written_out():
    torch.manual_seed(0)
    model = build("acoustic", {"in_features": 12, "hidden": [7, 5], "num_classes": 3}).double()
    images = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    weights = dict(model.named_parameters())
    x = images.reshape(4, 12)
    for layer in ("layers.0", "layers.1"):
        x = 1 / (1 + torch.exp(-(x @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"])))
    expected = x @ weights["fc.weight"].T + weights["fc.bias"]
    torch.testing.assert_close(model(images), expected, rtol=1e-12, atol=1e-12)


def test_the_backward_pass_is_right_for_the_sigmoid_in_place():
    torch.manual_seed(0)
    model = build("acoustic", {"in_features": 3, "hidden": [4, 4], "num_classes": 2}).double()
    images = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (images,))


@pytest.mark.parametrize("gain", [4.0, 1.0])
def test_weights_start_as_glorots_times_the_gain_and_biases_at_zero(gain):
    torch.manual_seed(0)
    arguments = {"in_features": 784, "num_classes": 10} | ({} if gain == 4.0 else {"init_gain": gain})
    model = build("acoustic", arguments)
    layers = [*model.layers, model.fc]
    assert [layer.out_features for layer in layers] == [256, 256, 256, 256, 10]
    for layer in layers:
        bound = gain * math.sqrt(6 / (layer.in_features + layer.out_features))
        assert layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert not layer.bias.any()


def test_signals_reach_the_last_layer_only_with_the_gain():
    """Without it the outputs hardly depend on the input, and training sits at chance."""

    def spread(gain: float) -> float:
        torch.manual_seed(0)
        model = build("acoustic", {"in_features": 784, "num_classes": 10, "init_gain": gain})
        with torch.no_grad():
            logits = model(torch.randn(100, 784))
        return logits.std(0).mean().item()

    assert spread(4.0) > 0.3
    assert spread(1.0) < 0.01


def test_a_gain_of_zero_is_a_mistake():
    with pytest.raises(InputError, match="must be above 0"):
        build("acoustic", {"in_features": 4, "num_classes": 2, "init_gain": 0.0})
    with pytest.raises(InputError, match="a list of whole numbers"):
        build("acoustic", {"in_features": 4, "num_classes": 2, "hidden": [0]})
