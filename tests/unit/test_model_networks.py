"""The networks' numbers (parameters, shapes, first values): Goyal et al. 2017, section 5.1, and check G6."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from squall.errors import InputError
from squall.model import build
from squall.model.resnet import _BasicBlock, _Bottleneck


def blocks_of(model):
    return [m for m in model.modules() if isinstance(m, _BasicBlock | _Bottleneck)]


@pytest.mark.parametrize(
    ("name", "arguments", "parameters"),
    [
        ("resnet8", {"in_channels": 1}, 77_754),
        ("resnet20", {}, 272_474),
        ("resnet110", {}, 1_730_714),
        ("resnet18", {}, 11_689_512),
        ("resnet34", {}, 21_797_672),
        ("resnet50", {}, 25_557_032),
        ("resnet101", {}, 44_549_160),
        ("resnet152", {}, 60_192_808),
        ("mlp", {"in_features": 784, "hidden": [100, 50], "num_classes": 10}, 784 * 100 + 100 + 100 * 50 + 50 + 510),
    ],
)
def test_number_of_parameters(name, arguments, parameters):
    with torch.device("meta"):
        model = build(name, arguments)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_resnet50_has_the_tensors_that_the_paper_decays_and_the_names_that_others_publish():
    with torch.device("meta"):
        model = build("resnet50", {})
    norms = [p for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]
    assert len(norms) == 106
    assert len(list(model.parameters())) - len(norms) == 55
    names = set(model.state_dict())
    assert {"conv1.weight", "bn1.running_var", "layer1.0.downsample.0.weight", "layer4.2.bn3.bias", "fc.bias"} <= names


def test_the_stride_of_a_bottleneck_is_on_its_3x3():
    with torch.device("meta"):
        block = build("resnet50", {}).layer2[0]
    assert block.conv1.stride == (1, 1)
    assert block.conv2.stride == (2, 2)
    assert block.conv2.kernel_size == (3, 3)


@pytest.mark.parametrize(
    ("name", "arguments", "image"),
    [
        ("resnet8", {"in_channels": 1}, (1, 8, 8)),
        ("resnet20", {"width": 4}, (3, 32, 32)),
        ("resnet18", {"width": 4}, (3, 64, 64)),
        ("resnet50", {"width": 4}, (3, 64, 64)),
    ],
)
def test_g6_a_new_residual_block_is_relu_of_its_shortcut(name, arguments, image):
    torch.manual_seed(1)
    model = build(name, arguments).double()
    seen = []
    for block in blocks_of(model):
        block.register_forward_pre_hook(lambda m, args: seen.append([m, args[0].clone()]))
        block.register_forward_hook(lambda m, args, out: seen[-1].append(out.clone()))
    logits = model(torch.randn(6, *image, dtype=torch.float64))
    assert logits.shape == (6, model.fc.out_features)
    assert len(seen) == len(blocks_of(model))
    for block, before, after in seen:
        shortcut = before if block.downsample is None else block.downsample(before)
        assert torch.equal(after, torch.relu(shortcut))
        assert after.abs().max() > 0


def test_g6_without_zero_init_a_block_is_more_than_its_shortcut():
    torch.manual_seed(1)
    block = build("resnet8", {"zero_init_residual": False}).layer1[0]
    x = torch.randn(4, 16, 8, 8)
    assert not torch.allclose(block(x), torch.relu(x), atol=0.1)


def test_g6_the_last_layer_starts_small_and_convolutions_as_he():
    torch.manual_seed(2)
    model = build("resnet18", {})
    assert model.fc.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert not model.fc.bias.any()
    convolution = model.layer3[1].conv1.weight
    fan_out = convolution.shape[0] * 9
    assert convolution.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.01)
    scales = {id(m): m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    last = {id(block.last_norm) for block in blocks_of(model)}
    assert len(last) == 8
    assert all(torch.all(w == (0 if key in last else 1)) for key, w in scales.items())


def test_fc_init_std_is_a_choice():
    assert not build("resnet8", {"fc_init_std": 0.0}).fc.weight.any()


def test_equal_seeds_give_equal_networks():
    def made(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in build("resnet8", {}).parameters()])

    assert torch.equal(made(3), made(3))
    assert not torch.equal(made(3), made(4))


def textbook(model, x):
    """ResNet-8 of He et al. 2016, section 4.2, written down without modules or anything in place."""

    def norm(x, bn):
        mean = x.mean((0, 2, 3), keepdim=True)
        variance = x.var((0, 2, 3), unbiased=False, keepdim=True)
        return (x - mean) / (variance + bn.eps).sqrt() * bn.weight.view(1, -1, 1, 1) + bn.bias.view(1, -1, 1, 1)

    x = F.relu(norm(F.conv2d(x, model.conv1.weight, padding=1), model.bn1))
    for block, stride in ((model.layer1[0], 1), (model.layer2[0], 2), (model.layer3[0], 2)):
        out = F.relu(norm(F.conv2d(x, block.conv1.weight, padding=1, stride=stride), block.bn1))
        out = norm(F.conv2d(out, block.conv2.weight, padding=1), block.bn2)
        if stride != 1:
            x = norm(F.conv2d(x, block.downsample[0].weight, stride=stride), block.downsample[1])
        x = F.relu(out + x)
    return x.mean((2, 3)) @ model.fc.weight.t() + model.fc.bias


def test_values_and_gradients_are_those_of_the_textbook():
    torch.manual_seed(5)
    model = build("resnet8", {"width": 4, "zero_init_residual": False, "fc_init_std": 1.0}).double()
    x = torch.randn(5, 3, 12, 12, dtype=torch.float64)
    target = torch.tensor([0, 1, 2, 3, 4])
    parameters = list(model.parameters())
    ours, twin = model(x), textbook(model, x)
    torch.testing.assert_close(ours, twin, rtol=1e-10, atol=1e-10)
    for a, b in zip(
        torch.autograd.grad(F.cross_entropy(ours, target), parameters),
        torch.autograd.grad(F.cross_entropy(twin, target), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_bfloat16_and_channels_last_train():
    torch.manual_seed(6)
    model = build("resnet8", {"width": 8}).to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_mlp_is_linear_layers_with_relu_between():
    torch.manual_seed(7)
    model = build("mlp", {"in_features": 12, "hidden": [7, 5], "num_classes": 3})
    x = torch.randn(4, 3, 2, 2)
    h = x.reshape(4, 12)
    for layer in model.layers:
        h = (h @ layer.weight.t() + layer.bias).clamp(min=0)
    torch.testing.assert_close(model(x), h @ model.fc.weight.t() + model.fc.bias)
    assert build("mlp", {"in_features": 12, "num_classes": 3})(x).shape == (4, 3)


def test_mlp_drops_hidden_values_in_training_only():
    torch.manual_seed(8)
    model = build("mlp", {"in_features": 12, "hidden": [400], "num_classes": 3, "dropout": 0.25})
    kept = []
    model.fc.register_forward_pre_hook(lambda m, args: kept.append((args[0] > 0).float().mean().item()))
    x = torch.randn(50, 12)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    assert kept[0] / kept[2] == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("value", [1.0, 1.5])
def test_dropout_of_everything_is_refused(value):
    with pytest.raises(InputError, match="below 1"):
        build("mlp", {"in_features": 2, "num_classes": 2, "dropout": value})
