import subprocess
import sys

import pytest
import torch
from torch import nn

from squall.errors import InputError
from squall.model import build, names


def count(model):
    return sum(p.numel() for p in model.parameters())


def tiny_factory(width: int, **anything):
    return nn.Linear(width, len(anything) + 1)


def not_a_module():
    return 7


def test_every_shipped_name_builds():
    with torch.device("meta"):
        for name in names():
            arguments = {"in_features": 4, "num_classes": 2} if name in ("acoustic", "mlp") else {}
            assert isinstance(build(name, arguments), nn.Module)


def test_listing_names_does_not_load_torch():
    code = "import sys; from squall.model import names; assert 'resnet8' in names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_own_factory_by_module_and_function():
    model = build(f"{__name__}:tiny_factory", {"width": 3, "a": 1, "b": 2})
    assert count(model) == 3 * 3 + 3
    assert count(build("torch.nn:Linear", {"in_features": 2, "out_features": 3})) == 9


def test_unknown_name_lists_near_and_valid_ones():
    with pytest.raises(InputError) as caught:
        build("resnet19", {})
    text = caught.value.text()
    assert "model.name=resnet19" in text
    assert "Near: resnet18" in text
    assert "mlp" in text
    assert '"package.module:factory"' in text


def test_all_mistakes_in_arguments_show_at_once():
    with pytest.raises(InputError) as caught:
        build("resnet8", {"widht": 3, "num_classes": 0, "zero_init_residual": 1, "fc_init_std": -1.0, "depth": 20})
    rows = dict(caught.value.rows)
    assert "Near: width" in rows["model.widht=3"]
    assert "above 0" in rows["model.num_classes=0"]
    assert "true or false" in rows["model.zero_init_residual=1"]
    assert "0 or more" in rows["model.fc_init_std=-1.0"]
    assert "no such argument" in rows["model.depth=20"]
    assert "width" in caught.value.hint
    assert "depth" not in caught.value.hint


@pytest.mark.parametrize("value", [True, 0, -3, 2.0, "16"])
def test_a_width_is_a_whole_number_above_zero(value):
    with pytest.raises(InputError, match="whole number above 0"):
        build("resnet8", {"width": value})


@pytest.mark.parametrize("value", [3, [0], ["a"], "12"])
def test_hidden_is_a_list_of_widths(value):
    with pytest.raises(InputError, match="list of whole numbers"):
        build("mlp", {"in_features": 2, "num_classes": 2, "hidden": value})


def test_missing_arguments_are_named():
    with pytest.raises(InputError) as caught:
        build("mlp", {"hidden": [3]})
    assert [label for label, _ in caught.value.rows] == ["model.in_features", "model.num_classes"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no_such_package_here:f", "no module 'no_such_package_here'"),
        ("torch.no_such_part:f", "no module 'torch.no_such_part'"),
        (":f", "cannot be imported"),
        ("torch.nn:Lineer", "Linear"),
        (f"{__name__}:not_a_module", "type int"),
        ("sys:path", "cannot be called"),
    ],
)
def test_own_factory_that_does_not_serve(name, says):
    with pytest.raises(InputError) as caught:
        build(name, {})
    assert says in caught.value.text()


def test_a_module_that_fails_to_import_something_else_shows_its_own_error(tmp_path, monkeypatch):
    (tmp_path / "squall_test_broken.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        build("squall_test_broken:model", {})


def test_own_factory_mistyped_argument():
    with pytest.raises(InputError, match="Near: in_features"):
        build("torch.nn:Linear", {"in_featurs": 2, "in_features": 2, "out_features": 3})
