"""A checkpoint that is torn or changed anywhere is never loaded; the one before it is."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import squall
from squall.checkpoint import files, manifest
from squall.checkpoint.writer import manifest_text
from squall.errors import InputError
from squall.records import Noted, Record
from tests.unit.runs import make_data, make_model, summed

FIELDS: dict[str, Any] = {"epochs": 3, "global_batch_size": 8, "worker_batch_size": 4}


def begin(out: Path, model: nn.Module | None = None, sinks: Any = (), **fields: Any) -> tuple[squall.Run, nn.Module]:
    run = squall.Run(out, sinks=sinks, **{**FIELDS, **fields})
    model = model or make_model()
    try:
        run.setup(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    except BaseException:
        run.close()
        raise
    return run, model


def train(run: squall.Run, model: nn.Module, until: int = 10**9, data: Any = None) -> None:
    for step in run.steps(make_data(24) if data is None else data):
        for batch in step:
            step.backward(summed(model, *batch))
        run.optimizer.step()
        run.saver.finish()
        if step.index + 1 == until:
            raise KeyError("killed")


def stopped(out: Path, until: int = 6) -> Path:
    """A run of nine steps that died after step `until`; with checkpoints of steps 3 and 6."""
    run, model = begin(out)
    with pytest.raises(KeyError):
        train(run, model, until + 1)
    run.close()
    return out / "checkpoints"


@pytest.fixture(scope="module")
def died(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stopped(tmp_path_factory.mktemp("runs") / "died")


def pieces(folder: Path) -> list[tuple[Path, int]]:
    return [(path, path.stat().st_size) for path in sorted(folder.iterdir())]


def test_the_newest_whole_one_is_found(died: Path) -> None:
    assert files.steps_of(died) == [6, 3]
    found = files.newest(died)
    assert found is not None
    assert (found.path.name, found.passed_over) == ("step-00000006", ())


@pytest.mark.parametrize("kind", ["flipped", "truncated"])
def test_two_hundred_places_of_damage_are_all_seen(died: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(died, tmp_path / "checkpoints")
    newest = tmp_path / "checkpoints" / "step-00000006"
    draw = random.Random(kind)
    # both files alike, though one is much smaller: every part of the manifest matters
    for number in range(200):
        path, size = pieces(newest)[number % 2]
        at = draw.randrange(size)
        whole = path.read_bytes()
        changed = bytes([whole[at] ^ (1 << draw.randrange(8))])
        path.write_bytes(whole[:at] + (b"" if kind == "truncated" else changed + whole[at + 1 :]))
        found = files.newest(tmp_path / "checkpoints")
        assert found is not None, (path.name, at)
        assert found.path.name == "step-00000003", (path.name, at)
        assert found.passed_over[0][0] == "step-00000006"
        path.write_bytes(whole)
    whole_again = files.newest(tmp_path / "checkpoints")
    assert whole_again is not None
    assert whole_again.path == newest


@pytest.mark.parametrize("name", ["manifest.json", "rank-0.safetensors"])
def test_a_missing_file_is_seen(died: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(died, tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "step-00000006" / name).unlink()
    found = files.newest(tmp_path / "checkpoints")
    assert found is not None
    assert found.path.name == "step-00000003"


def test_a_run_goes_on_from_the_one_before_and_says_so(died: Path, tmp_path: Path) -> None:
    shutil.copytree(died.parent, tmp_path / "run")
    damaged = tmp_path / "run" / "checkpoints" / "step-00000006" / "rank-0.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    seen: list[Record] = []
    run, model = begin(tmp_path / "run", sinks=(seen.append,))
    assert run.steps_done == 3
    train(run, model)
    result = run.finish()
    undisturbed, model = begin(tmp_path / "other")
    train(undisturbed, model)
    assert result.values["weights_sha256"] == undisturbed.finish().values["weights_sha256"]
    (note,) = [record.text for record in seen if isinstance(record, Noted)]
    assert "step-00000006 is passed over: rank-0.safetensors has" in note


def test_a_newer_form_is_an_error_not_an_older_checkpoint(died: Path, tmp_path: Path) -> None:
    shutil.copytree(died.parent, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "step-00000006" / "manifest.json"
    body = manifest.read(path.read_bytes())
    path.write_text(manifest_text({**body, "format": manifest.FORMAT + 1, "squall": "9.0"}))
    with pytest.raises(InputError, match="written by a newer Squall") as error:
        begin(tmp_path / "run")
    assert "of Squall 9.0" in str(error.value)


def test_another_model_is_refused_with_names_and_shapes(died: Path, tmp_path: Path) -> None:
    shutil.copytree(died.parent, tmp_path / "run")
    with pytest.raises(InputError, match="the checkpoint is of another model") as error:
        begin(tmp_path / "run", nn.Sequential(make_model(), nn.Linear(3, 3)))
    assert "the checkpoint has none" in str(error.value)


def test_another_optimiser_is_refused(died: Path, tmp_path: Path) -> None:
    shutil.copytree(died.parent, tmp_path / "run")
    run = squall.Run(tmp_path / "run", **FIELDS)
    model = make_model()
    with pytest.raises(InputError, match=r"torch\.optim\.adamw\.AdamW"):
        run.setup(model, torch.optim.AdamW(model.parameters()))
    run.close()


def test_another_recipe_is_refused_with_its_fields(died: Path, tmp_path: Path) -> None:
    shutil.copytree(died.parent, tmp_path / "run")
    with pytest.raises(InputError, match="the checkpoint is of another recipe") as error:
        begin(tmp_path / "run", epochs=4, seed=1)
    assert [row[0] for row in error.value.rows[:2]] == ["epochs=4", "seed=1"]


def test_another_training_set_is_refused(died: Path, tmp_path: Path) -> None:
    shutil.copytree(died.parent, tmp_path / "run")
    for data in (make_data(23), [(x + 1, y) for x, y in make_data(24)]):
        run, model = begin(tmp_path / "run")
        with pytest.raises(InputError, match="was trained on another training set"):
            train(run, model, data=data)
        run.close()
    assert files.steps_of(tmp_path / "run" / "checkpoints") == [6, 3]
    run, model = begin(tmp_path / "run")  # nothing was lost by trying
    train(run, model)
    assert run.finish().outcome == "finished"


def test_another_arithmetic_is_refused_unless_told(died: Path, tmp_path: Path) -> None:
    shutil.copytree(died.parent, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "step-00000006" / "manifest.json"
    body = manifest.read(path.read_bytes())
    body["fingerprint"]["instruction_set"] = "AVX9"
    path.write_text(manifest_text(body))
    with pytest.raises(InputError, match="computed with another arithmetic") as error:
        begin(tmp_path / "run")
    assert error.value.rows[0][0] == "instruction_set"
    run, model = begin(tmp_path / "run", other_arithmetic=True)
    train(run, model)
    assert run.finish().outcome == "finished"


def test_records_that_are_gone_are_an_error(died: Path, tmp_path: Path) -> None:
    shutil.copytree(died.parent, tmp_path / "run")
    (tmp_path / "run" / "records.jsonl").write_text("")
    with pytest.raises(InputError, match=r"records\.jsonl is shorter than"):
        begin(tmp_path / "run")


def test_the_files_are_plain_safetensors(died: Path) -> None:
    from safetensors.torch import load_file

    found = files.newest(died)
    assert found is not None
    held = load_file(found.path / "rank-0.safetensors")
    vectors = dict(found.vectors())
    assert set(vectors) <= set(held)
    assert all(torch.equal(held[name], vector) for name, vector in vectors.items())
