"""Normalisation over virtual workers inside one pass: each group as if it were alone."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from squall.errors import InputError
from squall.model import build
from squall.model.ghostnorm import Groups, has_batch_norm, split_normalisation


def norm_and_input(dimensions=2, channels=6, samples=13, dtype=torch.float64, **options):
    """A normalisation that is not in its first state, and rows for it."""
    torch.manual_seed(0)
    kind = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dimensions or 1]
    module = kind(channels, **options).to(dtype)
    with torch.no_grad():
        for tensor in (*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())):
            tensor.uniform_(0.5, 1.5)
    shape = (samples, channels, *[4, 3, 2][:dimensions])
    return module, torch.randn(shape, dtype=dtype) * 2 + 1


def alone(module, x, sizes):
    """The slow twin: plain copies of the module, one for each group, run one by one from the same start."""
    copies = [copy.deepcopy(module) for _ in sizes]
    out = torch.cat([one(part) for one, part in zip(copies, x.split(sizes), strict=True)])
    merged = {
        name: sum(dict(one.named_buffers())[name] * (n / sum(sizes)) for one, n in zip(copies, sizes, strict=True))
        for name, buffer in module.named_buffers()
        if buffer.is_floating_point()
    }
    return out, copies, merged


def check(module, x, sizes, exact=True):
    ghost = copy.deepcopy(module)
    groups = split_normalisation(ghost)
    groups.sizes = sizes
    ours_x, twin_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours = ghost(ours_x)
    twin, copies, merged = alone(module, twin_x, sizes)
    cotangent = torch.randn_like(ours)
    (ours * cotangent).sum().backward()
    (twin * cotangent).sum().backward()
    if exact:
        assert torch.equal(ours, twin)
        assert torch.equal(ours_x.grad, twin_x.grad)
    assert ours.stride() == x.stride() or not exact
    bound = 1e-10 if x.dtype == torch.float64 else 1e-4
    tolerance = {"rtol": bound, "atol": bound}
    torch.testing.assert_close(ours, twin, **tolerance)
    torch.testing.assert_close(ours_x.grad, twin_x.grad, **tolerance)
    for name, parameter in ghost.named_parameters():
        expected = sum(dict(one.named_parameters())[name].grad for one in copies)
        torch.testing.assert_close(parameter.grad, expected, **tolerance)
    for name, expected in merged.items():
        torch.testing.assert_close(dict(ghost.named_buffers())[name], expected, **tolerance)


@pytest.mark.parametrize("sizes", [(4, 4, 5), (6, 7), (12, 1), (2,) * 6 + (1,)])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_each_group_is_as_if_alone_bit_for_bit(dimensions, sizes):
    module, x = norm_and_input(dimensions)
    check(module, x, sizes)


def test_rows_without_a_spatial_axis():
    module, x = norm_and_input(0)
    check(module, x, (4, 4, 5))


@pytest.mark.parametrize(
    "options", [{"affine": False}, {"track_running_stats": False}, {"momentum": None}, {"momentum": 0.5}]
)
def test_every_option_of_batch_norm(options):
    module, x = norm_and_input(**options)
    check(module, x, (4, 4, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(13, 6, 4, 3), (13, 1, 4, 3), (13, 6, 1, 2), (13, 32, 2, 2)])
def test_every_layout_and_mixed_precision(layout, dtype, shape):
    module, _ = norm_and_input(channels=shape[1], dtype=torch.float32)
    x = torch.randn(shape).to(dtype).contiguous(memory_format=layout)
    check(module, x, (4, 4, 5))


def test_an_input_that_is_not_contiguous():
    module, x = norm_and_input()
    check(module, x.transpose(2, 3), (4, 4, 5), exact=False)
    check(module, x[..., ::2], (4, 4, 5), exact=False)


def test_a_whole_model_in_low_precision():
    module, x = norm_and_input(dtype=torch.float32)
    module.bfloat16()
    groups = split_normalisation(module)
    groups.sizes = (4, 4, 5)
    out = module(x.bfloat16())
    expected = torch.cat(
        [
            F.batch_norm(p.float(), None, None, module.weight.float(), module.bias.float(), True)
            for p in x.split((4, 4, 5))
        ]
    )
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)
    assert module.running_mean.dtype == torch.bfloat16


def test_gradients_are_right_by_finite_differences():
    module, x = norm_and_input(channels=2, samples=5)
    groups = split_normalisation(module)
    groups.sizes = (3, 2)

    def run(x, weight, bias):
        return torch.func.functional_call(module, {"weight": weight, "bias": bias}, (x,))

    arguments = [x[..., :2, :2].clone(), module.weight.detach().clone(), module.bias.detach().clone()]
    assert torch.autograd.gradcheck(run, [a.requires_grad_() for a in arguments])


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_a_frozen_parameter_gets_no_gradient_and_the_rest_does(frozen):
    module, x = norm_and_input()
    getattr(module, frozen).requires_grad_(False)
    groups = split_normalisation(module)
    groups.sizes = (4, 4, 5)
    module(x).square().sum().backward()
    assert getattr(module, frozen).grad is None
    assert all(p.grad is not None for p in module.parameters() if p.requires_grad)


def test_the_running_statistics_get_one_update_a_pass():
    module, x = norm_and_input()
    before, mean = int(module.num_batches_tracked), module.running_mean.clone()
    groups = split_normalisation(module)
    groups.sizes = (4, 4, 5)
    module(x)
    assert int(module.num_batches_tracked) == before + 1
    # groups' means weighted by their samples are the batch's mean: one update by the momentum
    torch.testing.assert_close(module.running_mean, 0.9 * mean + 0.1 * x.mean((0, 2, 3)))


@pytest.mark.parametrize("sizes", [(), (13,)])
def test_one_group_is_the_plain_path(sizes):
    module, x = norm_and_input()
    plain = copy.deepcopy(module)
    split_normalisation(module).sizes = sizes
    assert torch.equal(module(x), plain(x))
    assert all(torch.equal(a, b) for a, b in zip(module.buffers(), plain.buffers(), strict=True))


def test_evaluation_is_untouched():
    module, x = norm_and_input()
    plain = copy.deepcopy(module).eval()
    split_normalisation(module).sizes = (4, 4, 5)
    module.eval()
    assert torch.equal(module(x), plain(x))
    assert torch.equal(module(x[:3]), plain(x[:3]))


def test_groups_differ_from_one_batch():
    module, x = norm_and_input()
    plain = copy.deepcopy(module)
    split_normalisation(module).sizes = (4, 4, 5)
    assert not torch.allclose(module(x), plain(x))


def test_a_model_keeps_its_class_names_and_state():
    model = build("resnet8", {"width": 4})
    modules, state = [type(m) for m in model.modules()], list(model.state_dict())
    groups = split_normalisation(model)
    assert len(groups) == 9
    assert [type(m) for m in model.modules()] == modules
    assert list(model.state_dict()) == state


def test_a_fused_pass_of_a_network_equals_its_workers_one_by_one():
    torch.manual_seed(1)
    model = build("resnet8", {"width": 4, "zero_init_residual": False, "fc_init_std": 0.5}).double()
    x, target, sizes = torch.randn(11, 3, 8, 8, dtype=torch.float64), torch.randint(10, (11,)), (4, 4, 3)
    _, copies, merged = alone(model, x, sizes)
    for one, part, labels in zip(copies, x.split(sizes), target.split(sizes), strict=True):
        F.cross_entropy(one(part), labels, reduction="sum").backward()
    split_normalisation(model).sizes = sizes
    F.cross_entropy(model(x), target, reduction="sum").backward()
    for name, parameter in model.named_parameters():
        expected = sum(dict(one.named_parameters())[name].grad for one in copies)
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-9)
    for name, expected in merged.items():
        torch.testing.assert_close(dict(model.named_buffers())[name], expected, rtol=1e-10, atol=1e-10)


def test_equal_passes_have_equal_bits():
    def run():
        torch.manual_seed(2)
        model = build("resnet8", {"width": 8}).to(memory_format=torch.channels_last)
        split_normalisation(model).sizes = (8, 8, 5)
        with torch.autocast("cpu", torch.bfloat16):
            out = model(torch.randn(21, 3, 8, 8).contiguous(memory_format=torch.channels_last))
        out.float().square().sum().backward()
        return [*(p.grad for p in model.parameters()), *model.buffers()]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


def test_buffers_that_are_replaced_by_views_are_followed():
    module, x = norm_and_input()
    groups = split_normalisation(module)
    groups.sizes = (4, 4, 5)
    vector = torch.zeros(64, dtype=torch.float64)
    module._buffers["running_mean"] = vector[:6]
    module(x)
    assert vector[:6].any()


class OwnForward(nn.BatchNorm2d):
    """As timm's fused normalisation and activation: a forward pass that knows nothing of groups."""

    def forward(self, x):
        self.num_batches_tracked.add_(1)
        return F.relu(
            F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps)
        )


def test_a_subclass_with_its_own_forward_is_split_too():
    plain, x = norm_and_input()
    module = OwnForward(6).double()
    module.load_state_dict(plain.state_dict())
    check(module, x, (4, 4, 5))
    split_normalisation(module).sizes = (4, 4, 5)
    before = int(module.num_batches_tracked)
    module(x)
    assert int(module.num_batches_tracked) == before + 1


def test_a_forward_that_someone_hung_on_the_module_still_runs():
    module, x = norm_and_input()
    plain = copy.deepcopy(module)
    module.forward = lambda x, inner=plain: inner(x) + 1
    groups = split_normalisation(module)
    groups.sizes = (4, 4, 5)
    out = module(x)
    expected = torch.cat([F.batch_norm(p, None, None, plain.weight, plain.bias, True) for p in x.split((4, 4, 5))])
    torch.testing.assert_close(out, expected + 1)
    groups.remove()
    torch.testing.assert_close(module(x), plain(x) + 1)


def test_removing_gives_the_plain_module_back():
    module, x = norm_and_input()
    plain = copy.deepcopy(module)
    groups = split_normalisation(module)
    groups.sizes = (4, 4, 5)
    groups.remove()
    assert "forward" not in vars(module)
    assert len(groups) == 0
    assert torch.equal(module(x), plain(x))


def test_splitting_again_follows_the_new_groups():
    module, x = norm_and_input()
    first, second = split_normalisation(module), split_normalisation(module)
    first.sizes, second.sizes = (1, 1), (4, 4, 5)
    assert module(x).shape == x.shape
    second.remove()
    assert "forward" not in vars(module)


def test_copies_follow_the_same_groups_and_have_their_own_state():
    model = nn.Sequential(norm_and_input()[0])
    groups = split_normalisation(model)
    other = copy.deepcopy(model)
    groups.sizes = (4, 4, 5)
    x = norm_and_input()[1]
    assert torch.equal(other(x), model(x))
    before = model[0].running_mean.clone()
    other(x)
    assert torch.equal(model[0].running_mean, before)
    assert not torch.equal(other[0].running_mean, before)


def test_a_split_model_can_be_pickled():
    module, x = norm_and_input()
    split_normalisation(module).sizes = (4, 4, 5)
    again = pickle.loads(pickle.dumps(module))
    assert torch.equal(again(x), module(x))


def test_rows_that_are_not_the_samples_are_an_error():
    module, x = norm_and_input()
    split_normalisation(module).sizes = (4, 4, 4)
    with pytest.raises(InputError) as caught:
        module(x)
    assert "13 rows in a pass of 12 samples" in caught.value.text()
    assert "compute.fuse = 1" in caught.value.text()


def test_a_worker_of_one_value_is_an_error_as_in_torch():
    module, x = norm_and_input(0)
    split_normalisation(module).sizes = (12, 1)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        module(x)


def test_an_input_of_the_wrong_shape_is_refused_as_in_torch():
    module, x = norm_and_input(2)
    split_normalisation(module).sizes = (4, 4, 5)
    with pytest.raises(ValueError, match="expected 4D input"):
        module(x[:, :, 0])


def test_sync_batch_norm_is_refused_with_what_to_set():
    model = nn.Sequential(nn.SyncBatchNorm(3))
    with pytest.raises(InputError) as caught:
        split_normalisation(model)
    assert "worker_batch_size" in caught.value.text()
    assert caught.value.headline.startswith("0 is a SyncBatchNorm")


def test_normalisation_of_single_samples_is_left_alone():
    model = nn.Sequential(nn.GroupNorm(2, 4), nn.LayerNorm([4, 3, 3]), nn.InstanceNorm2d(4, track_running_stats=True))
    assert not has_batch_norm(model)
    groups = split_normalisation(model)
    groups.sizes = (2, 1)
    assert len(groups) == 0
    x = torch.randn(3, 4, 3, 3)
    assert torch.equal(model(x), copy.deepcopy(model)(x))


def test_has_batch_norm_sees_every_kind():
    for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
        assert has_batch_norm(nn.Sequential(nn.Identity(), nn.Sequential(kind(2))))
    assert isinstance(split_normalisation(nn.Identity()), Groups)
