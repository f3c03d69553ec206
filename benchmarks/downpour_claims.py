"""Claims D13 to D16 of Dean et al. 2012 in simulated time: Fashion-MNIST, 4 x 256 sigmoid units, Downpour.

Written before the runs; what it does was not changed to suit them.

* Network: the paper's speech network scaled down (`acoustic`), weights started at Glorot x4; minibatches of 32; 10
  epochs of 55,000 images, counted over all replicas; 5,000 training images are held out, by a hash.
* Replicas R = 1, 5, 20, 50, 200; the shards' rule is sgd or adagrad; one shard; fetched and pushed at every minibatch;
  a constant rate. With R > 1 one replica trains the first epoch alone (warm start), unless the arm says "cold".
* Rates: one grid for everything. For each (rule, R), on seed 0 with 5 epochs, the rate with the highest accuracy on
  the held-out images after the last of them. "tuned" runs use that of their own (rule, R), "fixed" ones that of
  (rule, R = 1). Then seeds 1, 2, 3 with 10 epochs; their test accuracy is what is reported.
* Time: virtual seconds; a minibatch takes 120 ms (spread 0.2), one replica in twenty is three times slower, 0.2 ms and
  10 Gbit/s to the server. Target: 85 % of the test images. A run that never gets there has no time.

    python benchmarks/downpour_claims.py --data DIR            goes on where an earlier call stopped
    python benchmarks/downpour_claims.py --data DIR --part 1/2   every second run; somebody else does the others
    python benchmarks/downpour_claims.py --show                tables from the records
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from svg import COLOURS, Axis, Line, chart, page

RECORDS = Path(__file__).parent / "records" / "downpour-claims.jsonl"
RULES = ("sgd", "adagrad")
REPLICAS = (1, 5, 20, 50, 200)
GRID = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003)
SEEDS = (1, 2, 3)
TARGET = 0.85


@dataclass(frozen=True)
class Setting:
    """One run. `arm`: choose (seed 0, 5 epochs), tuned, fixed (the rate of R = 1), cold (tuned, no warm start)."""

    arm: str
    rule: str
    replicas: int
    rate: float
    seed: int

    @property
    def key(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


def run(setting: Setting, data: Path) -> dict[str, Any]:
    """Trains once; epochs as (virtual seconds, held-out accuracy, test accuracy)."""
    import squall
    from squall.errors import DivergedError
    from squall.recipe import load, override

    warm = "0ep" if setting.arm == "cold" or setting.replicas == 1 else "1ep"
    recipe = override(
        load("fashion-acoustic"),
        [
            f"seed={setting.seed}",
            f"epochs={5 if setting.arm == 'choose' else 10}",
            f"optimizer={setting.rule}",
            f"lr={setting.rate}",
            f"downpour.replicas={setting.replicas}",
            f"downpour.warm_start={warm}",
            "downpour.local_lr=0.0",
            "data.val_samples=5000",
        ],
    )
    epochs: list[Any] = []

    def hear(record: Any) -> None:
        if record.kind == "epoch":
            epochs.append((record.seconds, record.val["accuracy"], record.test["accuracy"]))

    found: dict[str, Any] = {"outcome": "finished"}
    try:
        result = squall.train(None, recipe, engine="simulated", sinks=(hear,), data_root=data)
        found["staleness"] = result.values["staleness"]["mean"]
        found["commit"] = result.values["commit"]
    except DivergedError as error:
        found["outcome"] = error.headline
    return {**found, "epochs": epochs}


def wanted(records: dict[str, Any]) -> Iterator[Setting]:
    """What there is to do, in an order in which later settings follow from earlier ones.

    Raises:
        KeyError: an earlier one's record is not there yet.
    """
    for rule, replicas, rate in itertools.product(RULES, REPLICAS, GRID):
        yield Setting("choose", rule, replicas, rate, 0)
    for seed, rule, replicas in itertools.product(SEEDS, RULES, REPLICAS):
        yield Setting("tuned", rule, replicas, chosen(records, rule, replicas), seed)
        if replicas > 1:
            yield Setting("fixed", rule, replicas, chosen(records, rule, 1), seed)
        if replicas >= 20:
            yield Setting("cold", rule, replicas, chosen(records, rule, replicas), seed)


def chosen(records: dict[str, Any], rule: str, replicas: int) -> float:
    """The rate with the highest held-out accuracy after 5 epochs; the larger one of equals."""

    def accuracy(rate: float) -> float:
        epochs = records[Setting("choose", rule, replicas, rate, 0).key]["epochs"]
        return float(epochs[-1][1]) if len(epochs) == 5 else 0.0

    return max(GRID, key=lambda rate: (accuracy(rate), rate))


def time_to(epochs: list[Any], target: float) -> float | None:
    """Virtual seconds until a test accuracy, between two epochs on a straight line."""
    before: tuple[float, float] | None = None
    for seconds, _, accuracy in epochs:
        if accuracy >= target:
            if before is None:
                return float(seconds)
            share = (target - before[1]) / (accuracy - before[1])
            return float(before[0] + share * (seconds - before[0]))
        before = (seconds, accuracy)
    return None


def load_records() -> dict[str, Any]:
    if not RECORDS.exists():
        return {}
    lines = [json.loads(line) for line in RECORDS.read_text(encoding="utf-8").splitlines()]
    return {json.dumps(line["setting"], sort_keys=True): line for line in lines}


def show(records: dict[str, Any]) -> None:
    """The tables."""
    print("rates chosen      " + "".join(f"{f'R={r}':>10}" for r in REPLICAS))
    for rule in RULES:
        print(f"  {rule:<16}" + "".join(f"{chosen(records, rule, r):>10g}" for r in REPLICAS))
    for arm in ("tuned", "fixed", "cold"):
        print(f"\n{arm}: test accuracy after 10 epochs, mean +- std of {len(SEEDS)}; seconds to {TARGET:.0%} (runs)")
        for rule, replicas in itertools.product(RULES, REPLICAS):
            rate = chosen(records, rule, 1 if arm == "fixed" else replicas)
            runs = [records.get(Setting(arm, rule, replicas, rate, seed).key) for seed in SEEDS]
            if None in runs:
                continue
            last = [final(r) for r in runs if r]
            times = [t for r in runs if r and (t := time_to(r["epochs"], TARGET)) is not None]
            text = f"{statistics.fmean(times):8.1f} ({len(times)})" if times else "   never"
            found = f"{statistics.fmean(last):6.2f} +- {statistics.stdev(last):.2f}"
            print(f"  {rule:<8} R={replicas:<4} rate {rate:<7g} {found}   {text}")


def figure(records: dict[str, Any]) -> str:
    """Test accuracy after 10 epochs, and time to the target, over replicas."""
    lines: dict[str, list[Line]] = {"accuracy": [], "time": []}
    for number, (rule, arm) in enumerate(itertools.product(RULES, ("tuned", "fixed"))):
        accuracy: list[tuple[float, float | None]] = []
        seconds: list[tuple[float, float | None]] = []
        for replicas in REPLICAS:
            own = arm == "tuned" or replicas == 1
            rate = chosen(records, rule, replicas if own else 1)
            keys = [Setting("tuned" if own else arm, rule, replicas, rate, seed).key for seed in SEEDS]
            runs = [records[key] for key in keys]
            accuracy.append((replicas, statistics.fmean(final(r) for r in runs)))
            times = [t for r in runs if (t := time_to(r["epochs"], TARGET)) is not None]
            seconds.append((replicas, statistics.fmean(times) if len(times) == len(SEEDS) else None))
        name, colour = f"{rule}, {'own rate' if arm == 'tuned' else 'rate of R = 1'}", COLOURS[number // 2]
        lines["accuracy"].append(Line(name, accuracy, colour, arm == "fixed"))
        lines["time"].append(Line(name, seconds, colour, arm == "fixed"))
    over = Axis("replicas", REPLICAS, logarithmic=True)
    return page(
        [
            chart("Test accuracy after 10 epochs, %", over, Axis("%", range(0, 101, 20)), lines["accuracy"]),
            chart(
                f"Virtual seconds to {TARGET:.0%} of the test images",
                over,
                Axis("s", (100, 200, 500, 1000, 2000), logarithmic=True),
                lines["time"],
            ),
        ]
    )


def final(run: dict[str, Any]) -> float:
    """Test accuracy after the last epoch, %; chance for a run that diverged."""
    return 100 * run["epochs"][-1][2] if len(run["epochs"]) == 10 else 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--figure", type=Path, help="where the plot is written")
    parser.add_argument("--part", default="1/1", help="K/N: every N-th run, beginning with the K-th")
    given = parser.parse_args()
    records = load_records()
    if given.figure:
        given.figure.write_text(figure(records), encoding="utf-8")
    if given.show or given.figure:
        show(records)
        return
    RECORDS.parent.mkdir(exist_ok=True)
    part, parts = (int(number) for number in given.part.split("/"))
    while not do_some(records, given.data, part - 1, parts):
        time.sleep(5)
        records |= load_records()
    show(records)


def do_some(records: dict[str, Any], data: Path, part: int, parts: int) -> bool:
    """Does what can be done; says whether that was all, or others' records are to be waited for."""
    settings = enumerate(wanted(records))
    while True:
        try:
            number, setting = next(settings)
        except StopIteration:
            return True
        except KeyError:
            return False
        if setting.key in records or number % parts != part:
            continue
        line = {"setting": asdict(setting), **run(setting, data)}
        with RECORDS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        records[setting.key] = line
        print(setting, line["epochs"][-1:], flush=True)


if __name__ == "__main__":
    main()
