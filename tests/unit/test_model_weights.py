import hashlib
import json
import pickle
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from squall.errors import InputError
from squall.model import build
from squall.model.weights import freeze, load_into, save, sha256
from squall.recipe import ModelSpec
from squall.training.parts import model_of


def small(seed=0, **arguments):
    torch.manual_seed(seed)
    return build("resnet8", {"width": 4, **arguments})


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_what_is_saved_loads_back_from_file_and_from_folder(tmp_path):
    first = small(0).to(memory_format=torch.channels_last)
    first.bn1.running_mean.fill_(3.0)
    save(tmp_path / "weights.safetensors", first.state_dict(), {"squall": "weights"})
    for source in (tmp_path, tmp_path / "weights.safetensors"):
        second = small(1)
        assert not same(first, second)
        assert load_into(second, source) == []
        assert same(first, second)
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]


def test_the_file_is_plain_safetensors_under_the_modules_own_names(tmp_path):
    model = small()
    path = tmp_path / "w.safetensors"
    save(path, model.state_dict(), {"sha256": "x"})
    assert load_file(path).keys() == model.state_dict().keys()
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    assert header["__metadata__"] == {"sha256": "x"}
    assert header["conv1.weight"]["shape"] == [4, 3, 3, 3]


def test_tied_tensors_and_views_of_one_vector_can_be_saved(tmp_path):
    vector = torch.arange(128.0)
    tensors = {"a": vector[:6].view(2, 3), "b": vector[64:70].view(3, 2).t(), "tied": vector[:6].view(2, 3)}
    save(tmp_path / "w.safetensors", tensors, {})
    again = load_file(tmp_path / "w.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "w.safetensors"
    save(path, {"a": torch.ones(2)}, {})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save(path, {"a": torch.zeros(2)}, {"steps": 3})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".pkl"])
def test_no_pickle_is_ever_opened(tmp_path, suffix):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "opened"), "w"))

    path = tmp_path / f"w{suffix}"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InputError, match="pickle") as caught:
        load_into(small(), path)
    assert "safetensors.torch.save_file" in caught.value.text()
    disguised = path.rename(tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_into(small(), disguised)
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = tmp_path / "w.safetensors"
    save(path, small().state_dict(), {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="not a whole safetensors file") as caught:
        load_into(small(), path)
    assert str(path) in caught.value.headline


def test_a_missing_file_or_empty_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_into(small(), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="no weights in"):
        load_into(small(), tmp_path)


def test_all_differences_show_at_once_and_nothing_is_copied(tmp_path):
    state = small(1).state_dict()
    state["fc.wieght"] = state.pop("fc.weight")
    state["bn1.bias"] = torch.zeros(7)
    path = tmp_path / "w.safetensors"
    save(path, state, {})
    model, untouched = small(0), small(0)
    with pytest.raises(InputError) as caught:
        load_into(model, path)
    rows = dict(caught.value.rows)
    assert rows["fc.weight"] == "is missing in the file"
    assert rows["bn1.bias"] == "7 in the file, 4 in the model"
    assert "Near: fc.weight" in rows["fc.wieght"]
    assert same(model, untouched)


def test_a_file_of_another_network_gives_a_short_message(tmp_path):
    path = tmp_path / "w.safetensors"
    save(path, build("resnet20", {}).state_dict(), {})
    with pytest.raises(InputError) as caught:
        load_into(build("mlp", {"in_features": 2, "num_classes": 2}), path)
    assert len(caught.value.rows) == 21
    assert caught.value.rows[-1][1].endswith("more")
    with pytest.raises(InputError, match="nothing in"):
        load_into(build("mlp", {"in_features": 2, "num_classes": 2}), path, strict=False)


def test_a_head_of_other_classes_is_told_and_can_be_left_out(tmp_path):
    path = tmp_path / "w.safetensors"
    source = small(1, num_classes=1000)
    save(path, source.state_dict(), {})
    model = small(0, num_classes=37)
    with pytest.raises(InputError) as caught:
        load_into(model, path)
    rows = dict(caught.value.rows)
    assert rows == {
        "fc.weight": "1000 x 16 in the file, 37 x 16 in the model",
        "fc.bias": "1000 in the file, 37 in the model",
    }
    assert "head of 1,000 classes, the model's has 37" in caught.value.hint
    head = model.fc.weight.detach().clone()
    assert load_into(model, path, strict=False) == ["fc.weight", "fc.bias"]
    assert torch.equal(model.conv1.weight, source.conv1.weight)
    assert torch.equal(model.fc.weight, head)


def test_what_is_skipped_keeps_its_first_values_and_the_rest_must_fit(tmp_path):
    path = tmp_path / "w.safetensors"
    source = small(1, num_classes=1000)
    state = source.state_dict()
    state["head.extra"] = torch.zeros(3)
    save(path, state, {})
    model = small(0, num_classes=37)
    head, layer = model.fc.weight.detach().clone(), model.layer1[0].conv1.weight.detach().clone()
    with pytest.raises(InputError, match=r"head.extra\s+the model has no such tensor") as caught:
        load_into(model, path, skip=["layer1"])
    assert 'model.weights_skip=["fc", "head"]' in caught.value.hint
    left = load_into(model, path, skip=["fc.*", "head", "layer1"])
    assert {name.split(".")[0] for name in left} == {"fc", "layer1"}
    assert torch.equal(model.fc.weight, head)
    assert torch.equal(model.layer1[0].conv1.weight, layer)
    assert torch.equal(model.conv1.weight, source.conv1.weight)
    with pytest.raises(InputError, match=r"mistake in model.weights_skip") as caught:
        load_into(model, path, skip=["fc", "head", "layr1"])
    assert "layer1" in dict(caught.value.rows)["'layr1'"]


def test_another_difference_is_not_called_a_head(tmp_path):
    path = tmp_path / "w.safetensors"
    save(path, small(1, in_channels=1).state_dict(), {})
    with pytest.raises(InputError) as caught:
        load_into(small(), path)
    assert caught.value.hint == 'if that is meant: model.weights_skip=["conv1"] to keep the model\'s own'


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_the_prefix_of_a_wrapper_is_taken_off(tmp_path, prefix):
    source, model = small(1), small(0)
    save_file({prefix + name: tensor for name, tensor in source.state_dict().items()}, tmp_path / "w.safetensors")
    load_into(model, tmp_path / "w.safetensors")
    assert same(source, model)


def test_a_model_keeps_its_dtype_and_memory_format(tmp_path):
    source = small(1)
    save(tmp_path / "w.safetensors", source.state_dict(), {})
    model = small(0).double().to(memory_format=torch.channels_last)
    load_into(model, tmp_path / "w.safetensors")
    assert model.conv1.weight.dtype == torch.float64
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(model.conv1.weight.float(), source.conv1.weight)


def test_freeze_by_module_name_and_wildcard():
    model = small()
    frozen = freeze(model, ["conv1", "layer1", "*.bn1.bias"])
    assert frozen == [name for name, p in model.named_parameters() if not p.requires_grad]
    assert "layer1.0.conv2.weight" in frozen
    assert "layer2.0.bn1.bias" in frozen
    assert "layer2.0.conv1.weight" not in frozen
    assert "fc.weight" not in frozen


def test_freeze_stops_at_the_border_of_a_name():
    model = nn.ModuleDict({"layer1": nn.Linear(1, 1), "layer10": nn.Linear(1, 1)})
    assert freeze(model, ["layer1"]) == ["layer1.weight", "layer1.bias"]


def test_a_pattern_that_matches_nothing_is_an_error_and_freezes_nothing():
    model = small()
    with pytest.raises(InputError) as caught:
        freeze(model, ["conv1", "stem", "layr1"])
    rows = dict(caught.value.rows)
    assert "layer1" in rows["'layr1'"]
    assert "conv1" in rows["'stem'"]
    assert all(p.requires_grad for p in model.parameters())


def test_a_frozen_normalisation_still_follows_the_batch():
    model = nn.Sequential(nn.BatchNorm1d(3))
    freeze(model, ["0"])
    model(torch.randn(8, 3) + 5)
    assert model[0].running_mean.min() > 0.2


def test_sha256_is_over_plain_bytes_in_order_of_names():
    a, b = torch.arange(24.0).reshape(1, 2, 3, 4), torch.tensor(2.5, dtype=torch.bfloat16)
    expected = hashlib.sha256(np.arange(24, dtype=np.float32).tobytes() + bytes.fromhex("2040")).hexdigest()
    assert sha256([("b", b), ("a", a)]) == expected
    assert sha256([("a", a.contiguous(memory_format=torch.channels_last)), ("b", b)]) == expected
    padded = torch.zeros(64)
    padded[:24] = torch.arange(24.0)
    assert sha256([("a", nn.Parameter(padded[:24].view(1, 2, 3, 4))), ("b", b)]) == expected
    assert sha256([("a", a + 1e-6), ("b", b)]) != expected


def test_a_recipe_starts_from_weights_with_another_head(tmp_path):
    path = tmp_path / "w.safetensors"
    source = small(1, num_classes=1000)
    save(path, source.state_dict(), {})
    spec = {"name": "resnet8", "width": 4, "num_classes": 37, "weights": str(path)}
    with pytest.raises(InputError, match="in the file, 37") as caught:
        model_of(ModelSpec(**spec))
    assert 'model.weights_skip=["fc"] to keep the model\'s own' in caught.value.hint
    torch.manual_seed(0)
    model = model_of(ModelSpec(**spec, weights_skip=["fc"], freeze=["layer1"]))
    assert torch.equal(model.conv1.weight, source.conv1.weight)
    assert torch.equal(model.fc.weight, small(0, num_classes=37).fc.weight)
    assert not model.layer1[0].conv1.weight.requires_grad
