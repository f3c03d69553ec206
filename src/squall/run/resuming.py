"""Going on with a run that did not come to its end: which checkpoint, whether it fits, and putting it back.

Rank 0 looks for the newest whole checkpoint, reads it, and tells the others: they need not see its folder, and all go
on from the same bytes. What does not fit (another recipe, model, training set, arithmetic) is an error that says what
differs; nothing is left at a default.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from squall.checkpoint import files
from squall.checkpoint.layout import DTYPES, Entry, lengths
from squall.cluster.world import World
from squall.errors import InputError
from squall.run import state
from squall.run.collect import broadcast, on_main
from squall.run.folder import CHECKPOINTS, RECORDS, STARTED
from squall.run.spec import RunSpec


@dataclass(frozen=True)
class Found:
    """A checkpoint, the same on all ranks.

    Attributes:
        body: of its manifest.
        tensors: its state by name, on the CPU.
        passed_over: newer ones that are not whole, as (name, reason).
    """

    body: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    passed_over: list[tuple[str, str]]

    @property
    def step(self) -> int:
        """Updates that it holds."""
        return int(self.body["step"])


def find(world: World, path: Path | None, spec: RunSpec) -> Found | None:
    """The newest whole checkpoint of a run, on all ranks; None where it was never saved.

    Arguments:
        path: of the run's folder, on rank 0.
        spec: of the run that is to go on.

    Raises:
        InputError: there are checkpoints and none is whole; a newer Squall wrote it; its records are gone; a run of
            other numbers that was never saved.
    """
    own: dict[str, torch.Tensor] = {}

    def look() -> str:
        assert path is not None
        checkpoint = files.newest(path / CHECKPOINTS)
        if checkpoint is None:
            _check_same_start(path, spec)
            return "{}"
        check_records(path / RECORDS, checkpoint.body)
        own.update(checkpoint.vectors())
        return json.dumps({"body": checkpoint.body, "passed_over": checkpoint.passed_over})

    heard = json.loads(on_main(world, look))
    if not heard:
        return None
    entries = [Entry.of_json(values) for values in heard["body"]["tensors"]]
    vectors = {}
    for dtype, length in lengths(entries).items():
        vector = own.pop(dtype) if own else torch.empty(length, dtype=DTYPES[dtype])
        moved = broadcast(world, vector.to(world.device).view(torch.uint8), 0)
        vectors[dtype] = moved.cpu().view(vector.dtype)  # the device holds what it trains, and not this beside it
    return Found(heard["body"], state.taken_out(entries, vectors), heard["passed_over"])


def _check_same_start(path: Path, spec: RunSpec) -> None:
    """Refuses to begin a run anew in place of another that was begun and never saved.

    Raises:
        InputError: it had other numbers.
    """
    if not (path / RECORDS).exists() or not (path / STARTED).exists():
        return
    before = json.loads((path / STARTED).read_text(encoding="utf-8")).get("fields", {})
    rows = _differing(before, asdict(spec), "in the folder")
    if rows:
        raise InputError(
            f"the folder {path} holds a run of another recipe, which was never saved",
            [*rows, ("to do", f"the same values, another run folder, or remove {path}")],
        )


def _differing(before: Mapping[str, Any], now: Mapping[str, Any], where: str) -> list[tuple[str, str]]:
    return [
        (f"{name}={now.get(name)!r}", f"{value!r} {where}") for name, value in before.items() if now.get(name) != value
    ]


def check_same_run(
    body: Mapping[str, Any], spec: RunSpec, rate: str, fingerprint: Mapping[str, Any], anyway: bool
) -> None:
    """Refuses a checkpoint of a run with other numbers, or one whose bits this machine would not continue.

    Arguments:
        rate: the schedule, as text.
        anyway: go on with another arithmetic.

    Raises:
        InputError: with every field that differs.
    """
    rows = _differing({**body["spec"], "lr": body["rate"]}, {**asdict(spec), "lr": rate}, "in the checkpoint")
    if rows:
        raise InputError(
            "the checkpoint is of another recipe",
            [
                *rows,
                ("rule", "a run is gone on with by the recipe that it began with"),
                ("to do", "the same values, or another run folder for a new run"),
            ],
        )
    differing = [
        (name, f"{value} in the checkpoint, {fingerprint.get(name)} now")
        for name, value in body["fingerprint"].items()
        if fingerprint.get(name) != value
    ]
    if differing and not anyway:
        raise InputError(
            "the checkpoint was computed with another arithmetic",
            [
                *differing,
                ("rule", "equal bits need equal arithmetic from the first step to the last"),
                ("to do", "resume on a machine like the first; or accept other bits with --other-arithmetic"),
            ],
        )


def check_records(path: Path, body: Mapping[str, Any]) -> None:
    """Refuses to go on where the records before the checkpoint are gone.

    Raises:
        InputError: the file is shorter than it was.
    """
    size = path.stat().st_size if path.exists() else 0
    if size < body["records"]:
        raise InputError(
            f"{path} is shorter than when the checkpoint was written",
            [
                ("found", f"{size:,} of {body['records']:,} bytes"),
                ("rule", "a run goes on with its records"),
                ("to do", f"bring the file back from a copy; or remove {path.parent} and begin anew"),
            ],
        )


def check_same_data(body: Mapping[str, Any], num_samples: int, digest: str) -> None:
    """Refuses another training set than the checkpoint's.

    Raises:
        InputError: another number of samples, or other samples.
    """
    if body["num_samples"] != num_samples:
        found = f"{num_samples:,} samples; the checkpoint was trained on {body['num_samples']:,}"
    elif body["data"] and digest and body["data"] != digest:
        found = "as many samples, but of those compared (each read with the seed of its index) one differs"
    else:
        return
    raise InputError(
        "the checkpoint was trained on another training set",
        [
            ("found", found),
            ("rule", "who sees which sample is dealt out by index, over the whole run"),
            ("to do", "resume with the same data (--data DIR), in the same order"),
        ],
    )
