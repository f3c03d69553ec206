"""The wheel is whole: it trains the digits with nothing but the core dependencies, from outside the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPTIONAL = ("tensorboard", "PIL", "ray", "plotly", "pytest", "hypothesis", "lightning", "accelerate")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "src"):
        (source / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_recipes_data_and_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (
        "recipes/digits.toml",
        "recipes/imagenet.toml",
        "py.typed",
        "data/files/digits.npz",
        "report/page.js",
    ):
        assert f"squall/{wanted}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "examples/"))]


def test_digits_train_from_the_wheel_without_optional_packages(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    install = [*pip, "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, timeout=100)
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        f"sys.modules.update(dict.fromkeys({OPTIONAL!r}))\n"  # None in sys.modules: importing it fails
        "import squall; assert squall.__file__.startswith(sys.path[0]), squall.__file__\n"
        "from squall.cli.main import main; sys.argv[0] = 'squall'; sys.exit(main())"
    )
    arguments = ["train", "digits", "epochs=1", "--processes", "1", "--out", str(tmp_path / "run"), "--quiet"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["outcome"] == "finished"
    assert result["ledger"]["complete"]
