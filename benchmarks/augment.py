"""Images per second of the whole-batch augmentation on one core: crop with padding, flip, normalisation of CIFAR-10.

Goal: 20,000 images/s or better, so that at 3,000 to 4,000 images/s of training on two cores it costs a tenth at most.
The peers' form of the same work (`contenders/shared.py`) stands beside it.

    python benchmarks/augment.py
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from contenders.shared import Images
from contenders.shared import augment as peers_augment
from harness import Records, median_ratio, read, rounds_of, table

from squall.data.augment import compile_ops
from squall.data.images import ImageSet
from squall.data.order import Draw

OPS = [{"random_crop": 32, "padding": 4}, {"horizontal_flip": 0.5}, {"normalize": "cifar10"}]
GOAL = 20_000
NUM_IMAGES, ROUNDS, SECONDS = 50_000, 7, 0.5


def main() -> int:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (NUM_IMAGES, 32, 32, 3), dtype=np.uint8)  # speed does not depend on what they show
    labels = rng.integers(0, 10, NUM_IMAGES)
    data = ImageSet.of(pixels, labels, compile_ops(OPS, (32, 32, 3)), [str(i) for i in range(10)], "random")
    peers = Images(torch.from_numpy(pixels), torch.from_numpy(labels))
    cpu = torch.device("cpu")

    def squall(ids: np.ndarray) -> None:
        data.batch(Draw(ids, np.zeros_like(ids)), 0, cpu)

    def peer(ids: np.ndarray) -> None:
        peers_augment(peers.__getitems__(ids.tolist()))

    records = Records("augment", {"ops": OPS, "threads": 1, "seconds": SECONDS})
    for number in range(ROUNDS):
        for batch_size in (32, 128, 256):
            for name, function in (("squall", squall), ("peers", peer)):
                speed = images_per_second(function, rng, batch_size)
                records.write(
                    {"kind": "run", "contender": f"{name} {batch_size}", "round": number, "images_per_second": speed}
                )
    speeds = rounds_of(read(records.path), "images_per_second")
    medians = {name: statistics.median(rounds.values()) for name, rounds in speeds.items()}
    rows = []
    for name, rounds in speeds.items():
        ratio = median_ratio(rounds, speeds[name.replace("squall", "peers")])
        rows.append(
            [
                name,
                f"{medians[name]:,.0f}",
                f"{min(rounds.values()):,.0f} .. {max(rounds.values()):,.0f}",
                f"{ratio:.2f}x",
            ]
        )
    print(table(["batch of", "images/s, one core", "range", "/ peers"], rows))
    worst = min(speed for name, speed in medians.items() if name.startswith("squall"))
    print(f"\n{'ok' if worst >= GOAL else 'MISSED'}: {worst:,.0f} images/s, goal {GOAL:,}\nrecords: {records.path}")
    return 0 if worst >= GOAL else 1


def images_per_second(function: Callable[[np.ndarray], None], rng: np.random.Generator, batch_size: int) -> float:
    """Batches of random samples for about half a second, after three that are not timed."""
    draws = rng.integers(0, NUM_IMAGES, (64, batch_size))
    for ids in draws[:3]:
        function(ids)
    num, begin = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begin) < SECONDS:
        function(draws[num % len(draws)])
        num += 1
    return num * batch_size / elapsed


if __name__ == "__main__":
    sys.exit(main())
