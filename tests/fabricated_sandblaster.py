"""Records of minimisations over the whole training set, written by hand: all counts add up."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from squall.records import (
    Ended,
    EpochEnded,
    Noted,
    Record,
    RoleChanged,
    Saved,
    SessionBegan,
    SessionEnded,
    Started,
)
from tests.fabricated import FINGERPRINT, NOON, write_lines

RECIPE = """\
name = {name}
seed = {seed}
epochs = {epochs}
strategy = "sandblaster"
worker_batch_size = 16
last_batch = "short"

[model]
name = "mlp"

[optimizer]
weight_decay = 0.0001

[sandblaster]
replicas = {replicas}
shards = {shards}
unit = 4
history = 10
line_search = "strong_wolfe"
damping = 0.0
noise = 1e-7
tolerance_gradient = 1e-5
tolerance_step = 0.0
backups = true
lease_timeout = "2s"

[compute]
precision = "fp32"
reduction = "exact"
"""

SHA256 = "767707651e56970f431d413ac24f5e7e41fa56ecc138da2d5e4107392036843"

UNITS = (4, 4, 2)
"""The portions of a batch, as they are handed out."""

SAMPLES = 16 * sum(UNITS) - 3


@dataclass
class Minimised:
    """A run to be written.

    Attributes:
        until: iterations after which its records end; None: all.
        faults: replica-1 dies and comes back, replica-0 computes a unit that another has settled, shard-0 comes
            back from its snapshot: one unit of a broken evaluation is in vain, and two iterations are done again.
        saves: a checkpoint after each iteration.
        outcome: of result.json; None: there is none.
    """

    name: str = "digits-sandblaster"
    seed: int = 0
    replicas: int = 3
    shards: int = 2
    iterations: int = 12
    budget: int = 30
    until: int | None = None
    faults: bool = False
    saves: bool = True
    engine: str = "simulated"
    outcome: str | None = "finished"
    called: str = "replica-"
    tally: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """All files of its folder."""
        folder.mkdir(parents=True)
        table = {"name": json.dumps(self.name), "seed": self.seed, "epochs": self.budget}
        (folder / "recipe.toml").write_text(RECIPE.format(**table, replicas=self.replicas, shards=self.shards))
        records = self.records(str(folder))
        if isinstance(records[-1], Ended):
            (folder / "result.json").write_text(json.dumps({**records[-1].result, "outcome": self.outcome}))
        write_lines(folder / "records.jsonl", [record for record in records if not isinstance(record, Saved)])
        write_lines(folder / "sessions.jsonl", self.events(records))
        return folder

    def events(self, records: list[Record]) -> list[Record]:
        """Those of sessions.jsonl."""
        began = SessionBegan(NOON, "node-7", 4242, self.replicas, 0, FINGERPRINT, "0.1.0")
        ends: list[Record] = [SessionEnded(NOON + 60, self.iterations, "finished")] if self.outcome else []
        return [began, *(record for record in records if isinstance(record, Saved)), *ends]

    def records(self, folder: str = "runs/one") -> list[Record]:
        """All of them, in order."""
        own = {"units": 0, "portions": 0, "samples": 0, "seconds": 0.0, "stalled": 0.0}
        names = [f"{self.called}{index}" for index in range(self.replicas)]
        self.tally = {"evaluated": 0, "portions": 0, "samples": 0, "inexact": 0, "wasted": 0}
        self.tally |= {"set_backs": 0, "redone": 0, "replicas": {name: dict(own) for name in names}}
        found: list[Record] = [self.started(folder)]
        found += [RoleChanged(0.001 * index, name, "joined") for index, name in enumerate(names)]
        evaluations = 0
        for iteration in range(self.iterations if self.until is None else self.until):
            for _ in range(tries(iteration)):
                self._evaluated(names)
                evaluations += 1
            at = float(evaluations)
            if self.faults:
                found += self._faults(iteration, at, names)
            found.append(self._iteration(iteration, evaluations))
            if self.saves:
                tally = json.loads(json.dumps(self.tally))
                found.append(Saved(iteration + 1, 0.0012, 0.25, 1_234_567, iteration + 1, at, tally))
        if self.outcome:
            last = [record for record in found if isinstance(record, EpochEnded)][-1]
            found.append(Ended(self.outcome, "", last.seconds, self._result(last)))
        return found

    def started(self, folder: str = "runs/one") -> Started:
        return Started(
            name=self.name,
            folder=folder,
            processes=self.replicas,
            seed=self.seed,
            fingerprint=FINGERPRINT,
            num_steps=self.budget,
            steps_per_epoch=1,
            epochs=self.budget,
            global_batch_size=SAMPLES,
            worker_batch_size=16,
            num_samples=SAMPLES,
            num_parameters=4_810,
            strategy="sandblaster",
            replicas=self.replicas,
            shards=self.shards,
            engine=self.engine,
        )

    def _evaluated(self, names: list[str]) -> None:
        tally, number = self.tally, self.tally["evaluated"]
        for place, portions in enumerate(UNITS):
            self._computed(names[(number + place) % len(names)], portions, 3 if place == len(UNITS) - 1 else 0)
        tally["evaluated"] += 1
        tally["portions"] += sum(UNITS)
        tally["samples"] += SAMPLES

    def _computed(self, name: str, portions: int, fewer: int = 0) -> None:
        own = self.tally["replicas"][name]
        for key, value in (("units", 1), ("portions", portions), ("samples", 16 * portions - fewer)):
            own[key] += value
        own["seconds"] += 0.2 * portions
        own["stalled"] += 0.004 * portions

    def _faults(self, iteration: int, at: float, names: list[str]) -> list[Record]:
        if iteration == 2:
            return [RoleChanged(at - 0.5, names[1], "silent")]
        if iteration == 3:
            self._computed(names[0], UNITS[0])
            self.tally["wasted"] += UNITS[0]
            return [RoleChanged(at - 0.5, names[1], "restarted")]
        if iteration == 7:
            self._computed(names[0], UNITS[1])
            for _ in range(2):
                self._evaluated(names)
            self.tally |= {"set_backs": 1, "redone": 2}
            back = RoleChanged(at - 0.5, "shard-0", "restarted")
            return [back, Noted("a shard was restarted: all go back by 2 iterations")]
        return []

    def _iteration(self, iteration: int, evaluations: int) -> EpochEnded:
        loss, right = 2.3 / (1 + iteration), 0.98 - 0.6 / (1 + iteration)
        return EpochEnded(
            epoch=iteration,
            step=evaluations - 1,
            train_loss=loss,
            lr=length(iteration),
            samples_per_second=SAMPLES / tries(iteration),
            spent={"compute": 1.9, "communication": 0.1},
            seconds=float(evaluations),
            evaluation=0.01,
            train={"accuracy": right + 0.01, "gradient_norm": 10.0**-iteration},
            test={"loss": 1.1 * loss, "accuracy": right},
        )

    def _result(self, last: EpochEnded) -> dict[str, Any]:
        tally = self.tally
        return {
            "name": self.name,
            "steps": last.epoch + 1,
            "fingerprint": FINGERPRINT,
            "test_accuracy": last.test["accuracy"],
            "test_error_median_last5": 0.08,
            "train_loss": last.train_loss,
            "samples_per_second": float(SAMPLES),
            "seconds": last.seconds,
            "evaluations": tally["evaluated"],
            "inexact": tally["inexact"],
            "portions": {"counted": tally["portions"], "wasted": tally["wasted"]},
            "samples": tally["samples"],
            "set_backs": {"times": tally["set_backs"], "iterations": tally["redone"]},
            "replicas": tally["replicas"],
            "iterations": last.epoch + 1,
            "loss": last.train_loss,
            "gradient_norm": last.train["gradient_norm"],
            "pairs": {"kept": last.epoch, "damped": 0, "skipped": 1},
            "restarts": 0,
            "minimum": {
                "outcome": "converged",
                "why": "the gradient's norm 1e-11 is within 1e-05",
                "advice": "a narrower sandblaster.tolerance_gradient",
            },
            "weights_sha256": SHA256,
        }


def tries(iteration: int) -> int:
    """Evaluations of an iteration; with the first one that of the beginning."""
    return {0: 2, 3: 3}.get(iteration, 1)


def length(iteration: int) -> float:
    """How far it went along its direction."""
    return {0: 0.55, 3: 0.25}.get(iteration, 1.0)
