"""Folders as runs leave them, written by hand: no training."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from squall import records
from squall.run.folder import Folder

NOW = 1_795_262_400.0
"""A time of day, in seconds since 1970."""


def started(**values: Any) -> records.Started:
    given: dict[str, Any] = {
        "name": "digits",
        "folder": "runs/one",
        "processes": 2,
        "seed": 0,
        "fingerprint": {},
        "num_steps": 360,
        "steps_per_epoch": 12,
        "epochs": 30,
        "global_batch_size": 128,
        "worker_batch_size": 16,
        "num_samples": 1437,
        "num_parameters": 77754,
    }
    return records.Started(**{**given, **values})


def stepped(step: int, **values: Any) -> records.Stepped:
    given = {"epoch": step // 12, "samples": 128, "loss": 0.5, "lr": 0.1, "seconds": (step + 1) * 0.1}
    return records.Stepped(step=step, **{**given, **values})


def epoch_ended(epoch: int, **values: Any) -> records.EpochEnded:
    given: dict[str, Any] = {
        "step": epoch * 12 + 11,
        "train_loss": 0.25,
        "lr": 0.1,
        "samples_per_second": 10_310.4,
        "spent": {"data": 1.0, "compute": 9.0},
        "seconds": (epoch + 1) * 1.2,
        "test": {"accuracy": 0.9 + epoch / 1000, "loss": 0.3},
    }
    return records.EpochEnded(epoch=epoch, **{**given, **values})


def session(time: float, start_step: int = 0, processes: int = 2) -> records.SessionBegan:
    return records.SessionBegan(time, "node7", 4711, processes, start_step, {}, "0.1.0")


def write(path: Path, *lines: records.Record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(line.to_json() + "\n" for line in lines)


def make(folder: Path, steps: int = 30, *, began: float = NOW, result: dict[str, Any] | None = None) -> Path:
    """A run of so many steps, with the epochs that ended in them; killed, unless it has a result."""
    write(folder / "records.jsonl", started(folder=str(folder)))
    for step in range(steps):
        write(folder / "records.jsonl", stepped(step))
        if step % 12 == 11:
            write(folder / "records.jsonl", epoch_ended(step // 12))
    write(folder / "sessions.jsonl", session(began))
    (folder / "recipe.toml").write_text("")
    for name in ("recipe.toml", "records.jsonl"):
        os.utime(folder / name, (began, began))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def checkpoint(folder: Path, step: int, num_bytes: int = 1_000) -> None:
    path = folder / "checkpoints" / f"step-{step:08}"
    path.mkdir(parents=True)
    (path / "rank-0.safetensors").write_bytes(b"0" * num_bytes)
    (path / "manifest.json").write_text("{}")


def taken(folder: Path) -> Folder:
    """The folder's lock, held as rank 0 holds it."""
    return Folder(folder, ended=True)


FINISHED: dict[str, Any] = {
    "name": "digits",
    "outcome": "finished",
    "processes": 2,
    "steps": 360,
    "test_accuracy": 0.9861,
    "test_error_median_last5": 0.0139,
    "test_loss": 0.05,
    "train_loss": 0.02,
    "samples_per_second": 10_310.4,
    "seconds": 9.84,
}
