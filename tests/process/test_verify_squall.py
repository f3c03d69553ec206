"""Squall's own recipes, tasks and loops pass `squall verify` with 1, 2, 3 and 4 processes, whose bits are equal."""

from __future__ import annotations

import lzma
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from squall.verify.examining import examine
from squall.verify.stage import Stage
from tests.verify.corpus.index import FOLDER

EXAMPLES = Path(__file__).parents[2] / "examples"
PROCESSES = (1, 2, 3, 4)
SHORT = ["epochs=2", "data.train_limit=603", "data.test_limit=203", "data.val_samples=101"]
OURS = {
    "recipe: digits": ("digits", ["epochs=2"]),
    "recipe: cifar10": ("cifar10", [*SHORT, "precision=fp32", "model.width=8", "--data={data}"]),
    "recipe: fashion-mnist": ("fashion-mnist", [*SHORT, "--data={data}"]),
    "task: batch normalisation": (str(FOLDER / "squall_task_a.py"), []),
    "task: dictionaries, gathered metrics": (str(EXAMPLES / "dict_batches.py"), []),
    "loop: random numbers in the data set": (str(FOLDER / "squall_loop_b.py"), []),
    "loop: evaluation": (str(EXAMPLES / "own_loop.py"), []),
}


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """Where all ranks come from."""
    with Stage(["squall.training"]) as one:
        yield one


@pytest.fixture(scope="module")
def data(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data sets; the large one unpacked once for all runs."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "fashion-mnist").symlink_to(real_data / "fashion-mnist")
    (folder / "cifar10").mkdir()
    for packed in (real_data / "cifar10").glob("*batch*.bin.xz"):
        with lzma.open(packed) as source, (folder / "cifar10" / packed.stem).open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    return folder


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", OURS)
def test_it_passes_with_any_number_of_processes(name: str, stage: Stage, data: Path) -> None:
    given, arguments = OURS[name]
    filled = [argument.replace("{data}", str(data)) for argument in arguments]
    verdict = examine(given, filled, processes=PROCESSES, limit_s=240, stage=stage)
    assert not verdict.troubles
    assert not verdict.fails, [(finding.check, finding.says) for finding in verdict.fails]
    found = {finding.check: finding for finding in verdict.findings}
    for check in ("gradient", "loss weighting", "epoch coverage", "epoch order", "weights", "determinism", "rate"):
        assert found[check].outcome == "ok", found[check]
    assert "runs with 2, 3 and 4" in found["determinism"].says
