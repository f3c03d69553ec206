"""The benchmarks' own arithmetic: pairing inside rounds, the peers' augmentation, counting shared memory once."""

import importlib.util
import mmap
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Imports a script of benchmarks/ without leaving it among the modules."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)

    def by_name(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name.replace("/", "_"), BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    yield by_name
    for name in ("harness", "shared"):
        if name not in before:
            sys.modules.pop(name, None)


def _run(name: str, number: int, speed: float) -> dict:
    return {"kind": "run", "contender": name, "round": number, "images_per_second": speed, "ranks": [{"loss": 1.0}]}


def test_a_ratio_is_taken_inside_each_round_so_that_drift_of_the_machine_cancels(load):
    harness = load("harness")
    drift = [1.0, 0.5, 0.25]
    records = [_run(name, i, speed * d) for i, d in enumerate(drift) for name, speed in (("a", 300.0), ("b", 100.0))]
    speeds = harness.rounds_of(records, "images_per_second")
    assert harness.median_ratio(speeds["a"], speeds["b"]) == pytest.approx(3.0)


def test_a_round_that_one_side_failed_is_left_out_of_the_ratio(load):
    harness = load("harness")
    failed = {"kind": "failed", "contender": "b", "round": 1, "error": "x"}
    speeds = harness.rounds_of([_run("a", 0, 2.0), _run("b", 0, 1.0), _run("a", 1, 9.0), failed], "images_per_second")
    assert harness.paired_ratios(speeds["a"], speeds["b"]) == [2.0]
    assert harness.median_ratio(speeds["a"], {}) is None


@pytest.mark.parametrize(("speed", "verdict"), [(300.0, "goal"), (250.0, "ok"), (200.0, "MISSED")])
def test_the_report_says_whether_a_goal_is_reached(load, speed, verdict):
    throughput = load("throughput")
    text = throughput.report([_run("ddp_default", 0, 100.0), _run("squall_train_exact", 0, speed)])
    line = next(line for line in text.splitlines() if line.startswith("squall_train_exact / ddp_default"))
    assert line.split()[-1] == verdict


def test_a_command_that_fails_is_an_error_with_its_last_words(load, tmp_path):
    harness = load("harness")
    script = "print('the reason'); raise SystemExit(3)"
    with pytest.raises(harness.FailedError, match=r"(?s)exit status 3.*the reason"):
        harness.run([sys.executable, "-c", script], tmp_path / "log", deadline_s=30)


def test_a_command_past_its_deadline_is_ended_with_its_children(load, tmp_path):
    harness = load("harness")
    # the child, in a session of its own as torchrun's ranks are, would run for a minute
    with pytest.raises(harness.FailedError, match="not done") as caught:
        harness.run(["sh", "-c", "setsid sleep 60 & echo $!; wait"], tmp_path / "log", deadline_s=0.3)
    child = int(str(caught.value).splitlines()[-1])
    assert harness.family(child) == {}


def test_the_peers_augmentation_equals_cropping_flipping_and_normalising_each_image(load):
    shared = load("contenders/shared")
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (6, 32, 32, 3), dtype=torch.uint8, generator=generator)
    torch.manual_seed(5)
    inputs, labels = shared.augment((images, torch.arange(6)))
    torch.manual_seed(5)
    top, left = torch.randint(0, 9, (2, 6, 1))
    flipped = torch.rand(6, 1) < 0.5
    assert flipped.any()
    assert not flipped.all()
    for i in range(6):
        padded = torch.zeros(40, 40, 3)
        padded[4:36, 4:36] = images[i].float()
        crop = padded[top[i, 0] : top[i, 0] + 32, left[i, 0] : left[i, 0] + 32]
        crop = crop.flip(1) if flipped[i, 0] else crop
        expected = (crop / 255 - torch.tensor([0.4914, 0.4822, 0.4465])) / torch.tensor([0.2470, 0.2435, 0.2616])
        torch.testing.assert_close(inputs[i], expected.permute(2, 0, 1))
    assert labels.tolist() == list(range(6))
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    torch.manual_seed(5)
    plain, _ = shared.augment_nchw((images, labels))
    assert plain.is_contiguous()
    assert torch.equal(plain, inputs)


def test_a_set_in_shared_memory_is_told_from_copies_by_its_content(load):
    memory = load("memory")
    memory.SET_BYTES = size = 1 << 20
    here, nowhere = bytes(range(1, 256)) * 13, [os.urandom(3072) for _ in range(3)]
    others = set(memory.memory_of(os.getpid(), [here]).shared)  # of tests that ran in this process before
    file = os.memfd_create("set")
    try:
        os.truncate(file, size)
        views = [mmap.mmap(file, size, mmap.MAP_SHARED, mmap.PROT_READ) for _ in range(2)]
        touched = sum(view[i] for view in views for i in range(0, size, mmap.PAGESIZE))
        found = memory.memory_of(os.getpid(), [here, *(image[::-1] for image in nowhere)])
        inode = os.fstat(file).st_ino
        for view in views:
            view.close()
    finally:
        os.close(file)
    assert touched == 0
    assert set(found.shared) - others == {inode}
    assert 0 < found.shared[inode] <= found.pss
    assert found.private >= 1 / 4  # `here` lies in this process's own memory
