"""Records of runs of replicas and shards, written by hand: all counts add up, and nothing is left to chance."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from squall.records import Ended, EpochEnded, Pushed, Record, RoleChanged, Saved, SessionBegan, SessionEnded, Started
from tests.fabricated import FINGERPRINT, NOON, write_lines

RECIPE = """\
name = {name}
seed = {seed}
epochs = {epochs}
strategy = "downpour"
worker_batch_size = 16
last_batch = "short"

[model]
name = "resnet8"

[optimizer]
name = "adagrad"

[lr]
base = 0.01
scaling = "none"
schedule = "constant"
warmup_epochs = 0.0

[downpour]
replicas = {replicas}
shards = {shards}
fetch_every = 1
push_every = 1
warm_start = "0ep"

[compute]
precision = "fp32"
reduction = "exact"
"""

SHA256 = "adf318c167cbb2f106f5a22b3bb24b8913542549b220fee8b40946d"


@dataclass
class Replicated:
    """A run to be written.

    Attributes:
        until: minibatches after which its records end; None: all.
        faults: replica-1 dies and comes back, shard-0 comes back from its snapshot, the last replica falls silent,
            replica-0 computes a minibatch that another has settled, and one push is dropped.
        outcome: of result.json; None: there is none.
    """

    name: str = "digits-downpour"
    seed: int = 0
    replicas: int = 4
    shards: int = 2
    epochs: int = 3
    per_epoch: int = 40
    until: int | None = None
    faults: bool = False
    engine: str = "simulated"
    outcome: str | None = "finished"
    called: str = "replica-"
    staleness: Counter[int] = field(default_factory=Counter)

    def write(self, folder: Path) -> Path:
        """All files of its folder."""
        folder.mkdir(parents=True)
        table = {"name": json.dumps(self.name), "seed": self.seed, "epochs": self.epochs}
        (folder / "recipe.toml").write_text(RECIPE.format(**table, replicas=self.replicas, shards=self.shards))
        records = self.records(str(folder))
        if isinstance(records[-1], Ended):
            (folder / "result.json").write_text(json.dumps({**records[-1].result, "outcome": self.outcome}))
        write_lines(folder / "records.jsonl", [record for record in records if not isinstance(record, Saved)])
        began = SessionBegan(NOON, "node-7", 4242, self.replicas, 0, FINGERPRINT, "0.1.0")
        ends: list[Record] = [SessionEnded(NOON + 60, self.total, "finished")] if self.outcome else []
        write_lines(folder / "sessions.jsonl", [began, *(r for r in records if isinstance(r, Saved)), *ends])
        return folder

    @property
    def total(self) -> int:
        return self.epochs * self.per_epoch

    def records(self, folder: str = "runs/one") -> list[Record]:
        """All of them, in order."""
        self.staleness = Counter()
        found: list[Record] = [self.started(folder)]
        found += [RoleChanged(0.001 * index, f"{self.called}{index}", "joined") for index in range(self.replicas)]
        absent = self._absences()
        settled, at = 0, 0.5
        while settled < (self.total if self.until is None else self.until):
            at += 0.4 / self.replicas
            found += [change for when, change in self._changes() if at - 0.4 / self.replicas < when <= at]
            turn = (7 * settled) % self.replicas
            while any(begin <= at < end for begin, end in absent.get(turn, [])):
                turn = (turn + 1) % self.replicas
            settled += 1
            found.append(self._pushed(settled, at, turn))
            if settled % self.per_epoch == 0:
                found.append(self._epoch(settled, at))
                found.append(Saved(settled, 0.0012, 0.25, 1_234_567, settled // self.per_epoch, at))
        if self.outcome:
            result = self._result(at, [record for record in found if isinstance(record, Pushed)])
            found.append(Ended(self.outcome, "", at, result))
        return found

    def started(self, folder: str = "runs/one") -> Started:
        return Started(
            name=self.name,
            folder=folder,
            processes=self.replicas,
            seed=self.seed,
            fingerprint=FINGERPRINT,
            num_steps=self.total,
            steps_per_epoch=self.per_epoch,
            epochs=self.epochs,
            global_batch_size=16,
            worker_batch_size=16,
            num_samples=16 * self.per_epoch - 3,
            num_parameters=77_754,
            strategy="downpour",
            replicas=self.replicas,
            shards=self.shards,
            engine=self.engine,
        )

    def _absences(self) -> dict[int, list[tuple[float, float]]]:
        return {1: [(2.0, 5.0)], self.replicas - 1: [(4.0, 1e9)]} if self.faults else {}

    def _changes(self) -> list[tuple[float, RoleChanged]]:
        if not self.faults:
            return []
        return [
            (5.0, RoleChanged(5.0, f"{self.called}1", "restarted")),
            (6.0, RoleChanged(6.0, "shard-0", "restarted", 3)),
            (9.0, RoleChanged(9.0, f"{self.called}{self.replicas - 1}", "silent")),
        ]

    def _pushed(self, settled: int, at: float, turn: int) -> Pushed:
        stale = [(settled * 5) % (2 * self.replicas - 1)] * self.shards
        dropped = self.faults and settled == 30
        if self.faults and settled == 58:
            stale[0] = -1
        self.staleness.update(value for value in stale if value >= 0)
        epochs = settled / self.per_epoch
        return Pushed(
            seconds=at,
            replica=f"{self.called}{turn}",
            minibatch=settled - 1,
            minibatches=1,
            samples=16 if settled % self.per_epoch else 13,
            loss=2.3 / (1 + epochs) + 0.05 * (settled % 3),
            staleness=stale,
            dropped=self.shards * dropped,
            took=0.4,
            stalled=0.004 * (1 + turn % 5),
            alive=self.replicas - (self.faults and at >= 9.0),
            settled=settled,
        )

    def _epoch(self, settled: int, at: float) -> EpochEnded:
        epoch = settled // self.per_epoch - 1
        loss, right = 2.3 / (2 + epoch), 0.5 + 0.45 * (epoch + 1) / self.epochs
        return EpochEnded(
            epoch=epoch,
            step=settled - 1,
            train_loss=loss,
            lr=0.01,
            samples_per_second=(16 * self.per_epoch - 3) / (0.4 / self.replicas * self.per_epoch),
            spent={"compute": 15.6, "communication": 0.4},
            seconds=at,
            evaluation=0.03,
            train={"accuracy": right - 0.02},
            test={"loss": loss * 1.1, "accuracy": right},
        )

    def _result(self, at: float, pushes: list[Pushed]) -> dict[str, Any]:
        more = int(self.faults)
        replicas: dict[str, dict[str, float]] = {}
        for push in pushes:
            own = replicas.setdefault(
                push.replica, {"pushes": 0, "minibatches": 0, "samples": 0, "seconds": 0.0, "stalled": 0.0}
            )
            for key, value in (("pushes", 1), ("minibatches", 1), ("samples", push.samples)):
                own[key] += value
            own["seconds"] += push.took
            own["stalled"] += push.stalled
        if more:
            for key, value in (("pushes", 1), ("minibatches", 1), ("samples", 16)):
                replicas[f"{self.called}0"][key] += value
        shards = [
            {"applied": len(pushes) - more - 3 * more * (not shard), "dropped": more, "lost": 3 * more * (not shard)}
            for shard in range(self.shards)
        ]
        known = sum(self.staleness.values())
        return {
            "name": self.name,
            "steps": len(pushes),
            "fingerprint": FINGERPRINT,
            "test_accuracy": 0.95,
            "test_error_median_last5": 0.2,
            "train_loss": 2.3 / (1 + self.epochs),
            "samples_per_second": 1592.5,
            "seconds": at,
            "pushes": {"computed": len(pushes) + more, "repeated": more},
            "minibatches": {
                "settled": len(pushes),
                "of": self.total,
                "shards": [{**shard, "restarts": int(more and not index)} for index, shard in enumerate(shards)],
            },
            "staleness": {
                "mean": sum(value * times for value, times in self.staleness.items()) / known,
                "most": max(self.staleness),
                "counts": {str(value): self.staleness[value] for value in sorted(self.staleness)},
                "unknown": more * (1 + self.shards),
            },
            "replicas": replicas,
            "samples": sum(push.samples for push in pushes),
            "weights_sha256": SHA256,
        }
