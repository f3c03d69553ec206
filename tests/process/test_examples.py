"""Every example as its first lines say: a script, alone and under torchrun, and a target of `squall train`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
DEADLINE_S = 100


def run(commands: list[list[str]], folder: Path) -> list[str]:
    """Runs Python with these arguments, all at once; gives what each printed."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("SQUALL_", "OMP_", "MKL_"))}
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env=environ,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for command in commands
    ]
    printed = []
    try:
        for process in processes:
            out, complaints = process.communicate(timeout=DEADLINE_S)
            assert process.returncode == 0, complaints[-3000:]
            printed.append(out)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return printed


def result(folder: Path) -> dict[str, object]:
    return json.loads((folder / "result.json").read_text())


def check_equal_bits(tmp_path: Path, processes: dict[str, int]) -> None:
    results = {name: result(tmp_path / name) for name in processes}
    assert {name: found["processes"] for name, found in results.items()} == processes
    assert {found["outcome"] for found in results.values()} == {"finished"}
    assert len({str(found["weights_sha256"]) for found in results.values()}) == 1, results
    assert len({str(found["test_accuracy"]) for found in results.values()}) == 1, results


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "run"
    run([["-m", "squall", "train", "digits", "epochs=1", "--processes=1", f"--out={folder}", "--quiet"]], folder.parent)
    return folder


@pytest.mark.parametrize("name", ["digits_task", "dict_batches"])
def test_a_task_has_the_same_bits_through_each_door(name: str, tmp_path: Path) -> None:
    script = str(EXAMPLES / f"{name}.py")
    printed = run(
        [
            [script, "--epochs=1", "--out=alone"],
            [*TORCHRUN, script, "--epochs=1", "--out=torchrun"],
            ["-m", "squall", "train", script, "epochs=1", "--processes=2", "--out=squall"],
        ],
        tmp_path,
    )
    assert printed[0] == printed[1]  # one process of the job prints
    assert printed[0].startswith("epoch 1: ")
    check_equal_bits(tmp_path, {"alone": 1, "torchrun": 2, "squall": 2})


def test_an_own_loop_has_the_same_bits_alone_and_under_torchrun(tmp_path: Path) -> None:
    script = str(EXAMPLES / "own_loop.py")
    printed = run(
        [[script, "--epochs=1", "--out=alone"], [*TORCHRUN, script, "--epochs=1", "--out=torchrun"]], tmp_path
    )
    assert printed[0] == printed[1]
    assert printed[0].split()[-1] == result(tmp_path / "alone")["weights_sha256"]
    check_equal_bits(tmp_path, {"alone": 1, "torchrun": 2})


def test_fine_tuning_goes_on_from_a_run_and_leaves_frozen_layers_alone(base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    script = [str(EXAMPLES / "finetune.py"), str(base), "--epochs=1"]
    run([[*script, "--out=alone"], [*TORCHRUN, *script, "--out=torchrun"]], tmp_path)
    check_equal_bits(tmp_path, {"alone": 1, "torchrun": 2})
    before, after = load_file(base / "weights.safetensors"), load_file(tmp_path / "alone" / "weights.safetensors")
    kept = {name for name in before if after[name].shape == before[name].shape and after[name].equal(before[name])}
    assert {"conv1.weight", "layer1.0.conv1.weight", "layer2.0.conv2.weight"} <= kept
    assert not {"layer3.0.conv1.weight", "fc.weight", "bn1.running_mean"} & kept
    assert after["fc.weight"].shape == (2, 64)
