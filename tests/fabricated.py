"""Run folders written by hand, as a run of any length, outcome or misfortune leaves them; for what reads them."""

from __future__ import annotations

import hashlib
import json
import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from squall.records import (
    Ended,
    EpochEnded,
    Noted,
    Record,
    Saved,
    SaveFailed,
    SessionBegan,
    SessionEnded,
    Slow,
    Started,
    Stepped,
    finite,
)

NOON = 1_795_000_000.0
"""When the first of the runs began: seconds since 1970."""

FINGERPRINT = {
    "torch": "2.13.0+cpu",
    "device": "cpu",
    "instruction_set": "AVX512",
    "matrix_units": "avx512_bf16",
    "machine": "x86_64",
    "threads": 1,
    "precision": "fp32",
    "fuse": 1,
    "channels_last": False,
    "compile": False,
}

RECIPE = """\
name = {name}
seed = {seed}
epochs = {epochs}
strategy = "sync"
global_batch_size = 128
worker_batch_size = 16
last_batch = "short"

[model]
name = "resnet8"

[optimizer]
name = "sgd"
momentum = 0.9
nesterov = true
weight_decay = 0.0005

[lr]
base = {lr}
base_batch_size = 128
scaling = "linear"
schedule = "cosine"
final = 0.0
warmup_epochs = 0.0

[compute]
precision = "fp32"
reduction = "exact"
"""


@dataclass
class Made:
    """A run to be written.

    Attributes:
        epochs, per_epoch: of the recipe.
        until: epochs after which its records end; None: all.
        steps_more: steps after the last epoch that is whole.
        slow: (rank, factor) of a rank that is slower than the others.
        outcome: of result.json; None: there is none.
    """

    name: str = "digits"
    seed: int = 0
    processes: int = 2
    epochs: int = 6
    per_epoch: int = 12
    until: int | None = None
    steps_more: int = 0
    lr: float = 0.1
    speed: float = 2600.0
    slow: tuple[int, float] | None = None
    val: bool = True
    outcome: str | None = "finished"
    error: str = ""
    notes: tuple[str, ...] = ()
    result: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """All files of its folder."""
        folder.mkdir(parents=True)
        recipe = RECIPE.format(name=json.dumps(self.name), seed=self.seed, epochs=self.epochs, lr=self.lr)
        (folder / "recipe.toml").write_text(recipe)
        records = self.records(folder)
        if self.outcome:
            result = finite(self._result(records))
            (folder / "result.json").write_text(json.dumps(result))
            records.append(Ended(self.outcome, "", result["seconds"], result))
        write_lines(folder / "records.jsonl", records)
        return folder

    def records(self, folder: Path) -> list[Record]:
        """The records but the last."""
        chance, clock = random.Random(self.seed), random.Random(self.processes)
        total = self.epochs * self.per_epoch
        found: list[Record] = [
            Started(
                name=self.name,
                folder=str(folder),
                processes=self.processes,
                seed=self.seed,
                fingerprint=FINGERPRINT,
                num_steps=total,
                steps_per_epoch=self.per_epoch,
                epochs=self.epochs,
                global_batch_size=128,
                worker_batch_size=16,
                num_samples=128 * self.per_epoch - 99,
                num_parameters=77_754,
            )
        ]
        found += [Noted(text) for text in self.notes]
        ends = self.epochs if self.until is None else self.until
        step_s = 128 / (self.speed * self.processes * 0.97 ** (self.processes - 1))
        seconds = 1.8
        for epoch in range(ends + bool(self.steps_more)):
            steps = self.per_epoch if epoch < ends else self.steps_more
            for step in range(epoch * self.per_epoch, epoch * self.per_epoch + steps):
                seconds += step_s * clock.uniform(0.95, 1.1)
                found.append(self._step(step, epoch, seconds, step_s, chance))
            if epoch < ends:
                seconds += 0.08 * step_s * self.per_epoch
                found.append(self._epoch(epoch, seconds, step_s, chance, clock))
        return found

    def _rate(self, step: int) -> float:
        return self.lr * 0.5 * (1 + math.cos(math.pi * step / (self.epochs * self.per_epoch)))

    def _loss(self, epochs: float) -> float:
        return 0.05 + 2.25 * math.exp(-6 * epochs / self.epochs)

    def _step(self, step: int, epoch: int, seconds: float, step_s: float, chance: random.Random) -> Stepped:
        loss = self._loss(step / self.per_epoch) * chance.uniform(0.75, 1.3)
        if self.outcome == "diverged" and epoch == (self.until or 0) and step % self.per_epoch >= self.steps_more - 3:
            loss = [40.0, 3e6, math.nan][step % self.per_epoch - self.steps_more + 3]
        last = (step + 1) % self.per_epoch == 0
        spent = {name: step_s * share for name, share in SHARES.items()}
        return Stepped(step, epoch, 29 if last else 128, loss, self._rate(step), seconds, {}, spent)

    def _epoch(
        self, epoch: int, seconds: float, step_s: float, chance: random.Random, clock: random.Random
    ) -> EpochEnded:
        took = step_s * self.per_epoch
        pace = [0.00035 * clock.uniform(0.97, 1.03) for _ in range(self.processes)]
        if self.slow is not None:
            pace[self.slow[0]] *= self.slow[1]
        right = 1 - 0.9 * math.exp(-5 * (epoch + 1) / self.epochs) - chance.uniform(0.01, 0.025)
        loss = self._loss(epoch + 1)
        measured = {"loss": loss * 1.05, "accuracy": right}
        return EpochEnded(
            epoch=epoch,
            step=(epoch + 1) * self.per_epoch - 1,
            train_loss=loss,
            lr=self._rate((epoch + 1) * self.per_epoch - 1),
            samples_per_second=128 / step_s * clock.uniform(0.97, 1.02),
            spent={name: took * share * clock.uniform(0.9, 1.1) for name, share in SHARES.items()},
            seconds=seconds,
            evaluation=0.08 * took,
            pace=pace,
            train={"loss": loss, "accuracy": min(right + 0.01, 1.0)},
            val=measured if self.val else {},
            test={"loss": loss * 1.1, "accuracy": right - 0.006},
        )

    def _result(self, records: list[Record]) -> dict[str, Any]:
        epochs = [record for record in records if isinstance(record, EpochEnded)]
        steps = [record for record in records if isinstance(record, Stepped)]
        found: dict[str, Any] = {
            "name": self.name,
            "outcome": self.outcome,
            "processes": self.processes,
            "global_batch_size": 128,
            "worker_batch_size": 16,
            "steps": len(steps),
            "fingerprint": FINGERPRINT,
            "fingerprint_sha256": "5202934201d4",
            "versions": {"squall": "0.1.0", "python": "3.11.7", "torch": "2.13.0+cpu", "numpy": "2.4.6"},
            "commit": "c6100a5e50d2",
            "peak_rss_bytes": 376_496_128,
            "seconds": steps[-1].seconds if steps else 0.0,
        }
        if self.outcome == "finished":
            errors = sorted(1 - epoch.test["accuracy"] for epoch in epochs[-5:])
            seen = {
                "samples": 8622,
                "distinct": 1437,
                "least": 6,
                "most": 6,
                "skipped": 0,
                "digest": "b15ba89db798b048",
            }
            found |= {
                "test_accuracy": epochs[-1].test["accuracy"],
                "test_error_median_last5": errors[len(errors) // 2],
                "train_loss": epochs[-1].train_loss,
                "samples_per_second": epochs[-1].samples_per_second,
                "weights_sha256": hashlib.sha256(f"{self.name} {self.seed} {self.lr}".encode()).hexdigest(),
                "ledger": {**seen, "complete": True},
            }
        elif self.outcome:
            found |= {"error": self.error, f"{self.outcome}_at_step": len(steps) - 1}
        return {**found, **self.result}


SHARES = {"data": 0.03, "compute": 0.82, "communication": 0.06, "wait": 0.08, "save": 0.01}


def write_lines(path: Path, records: list[Record]) -> None:
    """Appends records to a file."""
    with path.open("a") as file:
        file.writelines(record.to_json() + "\n" for record in records)


def sessions(per_epoch: int = 12) -> list[Record]:
    """Three sessions: one killed, one stopped by a signal with a failed save and a slow rank, one that finishes."""

    def began(after: float, processes: int, step: int) -> SessionBegan:
        return SessionBegan(NOON + after, "node-7", 4242, processes, step, FINGERPRINT, "0.1.0")

    def saved(epoch: int) -> Saved:
        return Saved(step=epoch * per_epoch, blocked=0.0041 + 0.0003 * epoch, seconds=0.31, num_bytes=934_112)

    return [
        began(0, 4, 0),
        saved(1),
        saved(2),
        began(95, 2, 2 * per_epoch),
        saved(3),
        Slow(3, 1, 1.62),
        SaveFailed(4 * per_epoch, "No space left on device: checkpoints/step-00000048", 3 * per_epoch),
        SessionEnded(NOON + 160, 4 * per_epoch + 5, "stopped", "SIGTERM: saved at step 53"),
        began(190, 3, 4 * per_epoch + 5),
        saved(5),
        saved(6),
        SessionEnded(NOON + 240, 6 * per_epoch, "finished"),
    ]
