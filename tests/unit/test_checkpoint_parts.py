"""The parts of a checkpoint: nested state as plain data, places in vectors, slices, and the process that writes."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from squall.checkpoint import files, layout, manifest, plain, writer
from squall.checkpoint.background import Background
from squall.checkpoint.spec import CheckpointSpec
from squall.errors import InputError, RunError

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats()
    | st.text(max_size=4)
    | st.lists(st.floats(width=32, allow_nan=False), max_size=3).map(torch.tensor)
)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(-9, 9), inner, max_size=3)
    ),
    max_leaves=8,
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, float):
        return type(b) is float and (a == b or (math.isnan(a) and math.isnan(b)))
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and bool(a == b)


@settings(deadline=None)
@given(TREES)
def test_a_tree_comes_back_as_it_was(tree: Any) -> None:
    """Tuples stay tuples, keys that are numbers stay numbers, nan and infinity stay, through strict JSON."""
    tensors: plain.Tensors = {}
    skeleton = json.loads(json.dumps(plain.pack(tree, "x", tensors), allow_nan=False))
    assert same(tree, plain.unpack(skeleton, tensors))


def test_an_array_and_an_ordered_dictionary() -> None:
    tensors: plain.Tensors = {}
    skeleton = plain.pack(OrderedDict(b=np.arange(3), a=np.float64(2)), "x", tensors)
    found = plain.unpack(skeleton, tensors)
    assert list(found) == ["b", "a"]
    assert found["b"].dtype == np.int64
    assert found["a"] == 2.0


def test_an_array_without_dimensions_stays_one() -> None:
    tensors: plain.Tensors = {}
    skeleton = plain.pack(np.array(3), "x", tensors)
    assert plain.unpack(skeleton, tensors).shape == ()


NO_FORM = [object(), {1.5: 0}, {"a": [lambda: 0]}, np.array([None]), {3j}, np.array(["a"]), np.longdouble(1)]


@pytest.mark.parametrize("value", NO_FORM)
def test_what_has_no_plain_form_is_named(value: Any) -> None:
    with pytest.raises(RunError, match=r"optimizer\.?.* cannot be saved"):
        plain.pack(value, "optimizer", {})


SHAPES = st.lists(
    st.tuples(st.sampled_from([torch.float32, torch.int64, torch.bool, torch.bfloat16]), st.integers(0, 200)),
    min_size=1,
    max_size=8,
)


@settings(deadline=None, max_examples=50)
@given(SHAPES, st.integers(1, 5))
def test_slices_of_any_number_of_writers_make_up_the_vectors(shapes: Any, writers: int) -> None:
    torch.manual_seed(0)
    tensors = {f"t{i}": torch.randint(0, 2, (n,)).to(dtype) for i, (dtype, n) in enumerate(shapes)}
    placed = layout.entries(tensors)
    for dtype, length in layout.lengths(placed).items():
        whole = torch.zeros(length, dtype=layout.DTYPES[dtype])
        stops = [0]
        for part in range(writers):
            start, stop = layout.cut(length, writers, part)
            assert start == stops[-1]
            stops.append(stop)
            layout.copy_slice([e for e in placed if e.dtype == dtype], tensors, start, whole[start:stop])
        assert stops[-1] == length
        for entry in placed:
            if entry.dtype == dtype:
                found = entry.empty(torch.device("cpu"))
                layout.take(entry, whole, found)
                assert torch.equal(found, tensors[entry.name])


@pytest.mark.parametrize("writers", [1, 2, 3, 7])
def test_memory_formats_come_back(writers: int) -> None:
    """Also of a tensor that a cut goes through."""
    images = torch.randn(4, 8, 5, 5).contiguous(memory_format=torch.channels_last)
    tensors = {"images": images, "turned": torch.randn(30, 20).t(), "gaps": torch.randn(9, 9)[:, ::2]}
    placed = layout.entries(tensors)
    whole = torch.zeros(layout.lengths(placed)["F32"])
    for part in range(writers):
        start, stop = layout.cut(len(whole), writers, part)
        layout.copy_slice(placed, tensors, start, whole[start:stop])
    for entry in placed:
        found = entry.empty(torch.device("cpu"))
        layout.take(entry, whole, found)
        assert torch.equal(found, tensors[entry.name])
        if entry.name != "gaps":
            assert found.stride() == tensors[entry.name].stride()


def order_for(background: Background, folder: Path, tensors: plain.Tensors, name: str = "rank-0") -> dict[str, Any]:
    placed = layout.entries(tensors)
    slices = {dtype: (0, length) for dtype, length in layout.lengths(placed).items()}
    header, size = background.copy(placed, tensors, slices)
    return {
        "step": 7,
        "folder": str(folder / ".step-00000007.x"),
        "name": name,
        "header": header,
        "bytes": size,
        "parts": [name],
        "final": files.name_of(7),
        "manifest": manifest.FILE,
        "body": {
            "format": manifest.FORMAT,
            "tensors": [entry.as_json() for entry in placed],
            "slices": {f"{name}.safetensors": slices},
        },
        "sync": [],
        "remove": [],
    }


def test_written_and_read_again(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(100_001), "b": torch.arange(5), "c": torch.tensor([True, False]), "d": torch.ones(())}
    background = Background()
    try:
        background.order(order_for(background, tmp_path, tensors))
        answer = background.wait(30)
        assert answer is not None
        assert "error" not in answer
    finally:
        background.close()
    found = files.newest(tmp_path)
    assert found is not None
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000007"]
    vectors = dict(found.vectors())
    for entry in found.entries:
        target = entry.empty(torch.device("cpu"))
        layout.take(entry, vectors[entry.dtype], target)
        assert torch.equal(target, tensors[entry.name])


def test_a_place_that_cannot_be_written_is_an_answer(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    background = Background()
    try:
        background.order(order_for(background, tmp_path / "file", {"a": torch.ones(3)}))
        answer = background.wait(30)
    finally:
        background.close()
    assert answer is not None
    assert answer["error"] == "Not a directory"


def test_a_writer_that_was_killed_is_an_answer_and_the_next_order_has_a_new_one(tmp_path: Path) -> None:
    background = Background()
    try:
        assert background._process is not None
        os.kill(background._process.pid, signal.SIGSTOP)
        background.order(order_for(background, tmp_path, {"a": torch.ones(3)}))
        os.kill(background._process.pid, signal.SIGKILL)
        answer = background.wait(30)
        assert answer is not None
        assert "died" in answer["error"]
        background.order(order_for(background, tmp_path, {"a": torch.ones(3)}))
        answer = background.wait(30)
        assert answer is not None
        assert "error" not in answer
    finally:
        background.close()


def test_an_order_does_not_wait_for_a_writer_that_is_busy(tmp_path: Path) -> None:
    """As while it removes an older checkpoint; the order of a large model is longer than a pipe is by itself."""
    background = Background()
    try:
        assert background._process is not None
        os.kill(background._process.pid, signal.SIGSTOP)
        order = order_for(background, tmp_path, {"a": torch.ones(3)})
        order["body"]["long"] = "x" * 500_000
        handing = threading.Thread(target=background.order, args=(order,), daemon=True)
        handing.start()
        handing.join(5)
        assert not handing.is_alive()
        os.kill(background._process.pid, signal.SIGCONT)
        answer = background.wait(30)
        assert answer is not None
        assert "error" not in answer
    finally:
        background.close()


def test_a_disk_too_full_for_a_word_keeps_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1's part does not fit and what it has written goes; rank 0's writer, which wrote its own, hears of it."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = tmp_path / ".step-00000007.x"
    folder.mkdir()
    order = {"folder": str(folder), "name": "rank-1", "header": "", "bytes": 0}
    with monkeypatch.context() as patched:
        patched.setattr(writer, "_write_all", full)
        patched.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left"):
            writer.follow(order, writer.Memory(-1))
    assert not list(folder.iterdir())
    with pytest.raises(OSError, match="another rank could not write its part"):
        writer._part_of(folder, "rank-1")


def test_the_first_word_of_a_failure_stays(tmp_path: Path) -> None:
    folder = tmp_path / ".step-00000007.x"
    writer.say_failed(folder, "No space left on device (rank-1)")
    writer.say_failed(folder, "something else (rank-0)")
    with pytest.raises(OSError, match="No space left"):
        writer._wait_for(folder)


def test_the_writer_needs_no_torch() -> None:
    background = Background()
    try:
        assert background._process is not None
        maps = Path(f"/proc/{background._process.pid}/maps").read_text()
        assert "torch" not in maps
    finally:
        background.close()


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"every": "often"}, "every='often'"),
        ({"every": "0ep"}, "must be above 0"),
        ({"every": "1.5step"}, "steps are whole"),
        ({"every": 5}, "every=5"),
        ({"keep": 0}, "keep=0"),
        ({"keep_best": "test/accuracy"}, "the test set never chooses"),
        ({"keep_best": "accuracy"}, "a metric of the validation set"),
        ({"evry": "1ep"}, "no such field. Near: every"),
    ],
)
def test_a_table_that_is_wrong_is_refused(given_: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        CheckpointSpec.of(given_)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("every", "due"),
    [("1ep", [3, 7, 11]), ("0.5ep", [1, 3, 5, 7, 9, 11]), ("2ep", [7]), ("5step", [4, 9]), ("1min", []), ("never", [])],
)
def test_when_it_is_due(every: str, due: list[int]) -> None:
    spec = CheckpointSpec(every=every)
    assert [step for step in range(12) if spec.is_due(step, step / 4, (step + 1) / 4)] == due


@pytest.mark.parametrize(
    ("keep_best", "expected"),
    [
        ("val/accuracy", ("accuracy", False)),
        ("val/loss", ("loss", True)),
        ("val/top5_error", ("top5_error", True)),
        ("min:val/cost", ("cost", True)),
        ("max:val/loss", ("loss", False)),
        (None, None),
    ],
)
def test_which_is_best(keep_best: str | None, expected: tuple[str, bool] | None) -> None:
    assert CheckpointSpec(keep_best=keep_best).best == expected
