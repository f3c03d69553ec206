"""Runs schedules by their seeds, each twice, and counts those that hold."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable


def main(run: Callable[[int], str]) -> None:
    """Arguments: run: runs a seed's schedule and checks it; returns the hash of its course."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    seconds = []
    for seed in range(given.first, given.first + given.seeds):
        began = time.perf_counter()
        try:
            first = run(seed)
            seconds.append(time.perf_counter() - began)
            assert run(seed) == first, "the same seed took another course"
        except BaseException as error:
            print(f"seed {seed}: {type(error).__name__}: {error}", flush=True)
            if isinstance(error, KeyboardInterrupt):
                raise
    print(f"{len(seconds)} of {given.seeds} schedules held, twice alike; median {statistics.median(seconds):.3f} s")
