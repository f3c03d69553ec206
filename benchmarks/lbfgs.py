"""L-BFGS: how many evaluations it needs against SciPy's, and how fast shards compute its direction.

    python benchmarks/lbfgs.py [--elements 25000000] [--history 10] [--processes 2] [--rounds 15]

Evaluations are counted until the gradient's largest element is within 1e-6, both with the same history, no timing. The
direction is timed as shards do it, a slice in each process and all at once: the round trip that accepts a step (a new
pair, three rows of inner products) and the one that combines the direction and the first trial. It is held against the
machine's read bandwidth, measured in the same rounds by the same processes: two passes over the 2m + 1 vectors at that
speed are 100 %.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import harness
import torch

from squall.optim.algebra import Combine, Dots, Swap, Vectors
from squall.optim.lbfgs import (
    DIRECTION,
    GRADIENT,
    TRIAL,
    TRIAL_GRADIENT,
    History,
    LbfgsSpec,
    X,
    minimise,
    names,
)
from squall.optim.local import Local, finished

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.functions import HARD, quadratic, vector, with_gradient

TOLERANCE = 1e-6


def evaluations(records: harness.Records) -> None:
    """Both on all functions."""
    from scipy.optimize import minimize

    functions = {**HARD, "quadratic, 1,000, condition 1e6": (quadratic(1e6, 1000), vector(*[0] * 1000))}
    rows, totals = [], [0, 0]
    for name, (function, start) in functions.items():
        ours: list[float] = []
        spec = LbfgsSpec(tolerance_gradient=TOLERANCE, max_evaluations=30_000)
        finished(minimise(Local(with_gradient(function, ours), start, spec.history), spec))
        theirs: list[float] = []
        evaluated = with_gradient(function, theirs)

        def both(x: Any, evaluated: Any = evaluated) -> tuple[float, Any]:
            into = torch.empty(len(x), dtype=torch.float64)
            return evaluated(torch.tensor(x), into), into.numpy()

        options = {"maxcor": spec.history, "gtol": TOLERANCE, "ftol": 0.0, "maxfun": 30_000, "maxiter": 30_000}
        minimize(both, start.numpy(), jac=True, method="L-BFGS-B", options=options)
        counts = [next(n for n, largest in enumerate(log, 1) if largest <= TOLERANCE) for log in (ours, theirs)]
        records.write({"function": name, "squall": counts[0], "scipy": counts[1]})
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        rows.append([name, f"{counts[0]:,}", f"{counts[1]:,}"])
    rows.append(["all", f"{totals[0]:,}", f"{totals[1]:,}"])
    print(harness.table(["evaluations", "squall", "SciPy L-BFGS-B"], rows))


def slice_of(size: int, history: int) -> tuple[Vectors, Callable[[], None]]:
    """A shard's vectors with a full history, and one iteration's work on them."""
    vectors = Vectors(names(history), size, torch.float32)
    generator = torch.Generator().manual_seed(size)
    for name in names(history):
        vectors[name].normal_(generator=generator)
    known = History(history)
    for _ in range(history):
        known.take_slot()
    terms = tuple((name, 0.1) for name in known.basis)

    def work() -> None:
        slot = known.take_slot()
        pair = (f"s{slot}", f"y{slot}")
        vectors.do(
            Combine(pair[0], ((DIRECTION, 0.5),)),
            Combine(pair[1], ((TRIAL_GRADIENT, 1.0), (GRADIENT, -1.0))),
            Swap(X, TRIAL),
            Swap(GRADIENT, TRIAL_GRADIENT),
            Dots((*pair, GRADIENT), known.basis),
            Dots((X,), (X,)),
        )
        vectors.do(Combine(DIRECTION, terms), Combine(TRIAL, ((X, 1.0), (DIRECTION, 1.0))))

    return vectors, work


def shard(size: int, history: int, rounds: int, barrier: Barrier, answers: Any) -> None:
    """One process of the timing."""
    torch.set_num_threads(1)
    vectors, work = slice_of(size, history)
    everything = vectors._all[: 2 * history + 1].reshape(-1)
    ways = {"sum": lambda: everything.sum(), "dot": lambda: everything.dot(everything), "direction": work}
    for way in ways.values():
        way()
    for _ in range(rounds):
        for name, way in ways.items():
            barrier.wait()
            began = time.perf_counter()
            way()
            answers.put((name, time.perf_counter() - began))
            barrier.wait()


def direction(elements: int, history: int, processes: int, rounds: int, records: harness.Records) -> None:
    """Times the direction against reading."""
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(processes), context.Queue()
    size = elements // processes
    workers = [
        context.Process(target=shard, args=(size, history, rounds, barrier, answers), daemon=True)
        for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    num_bytes = (2 * history + 1) * 4 * size * processes
    shares, speeds, spent = [], [], []
    for _ in range(rounds):
        slowest: dict[str, float] = {}
        for _ in range(3 * processes):
            name, seconds = answers.get(timeout=300)
            slowest[name] = max(slowest.get(name, 0.0), seconds)
        reads = 2 * num_bytes / slowest["direction"]
        bandwidth = num_bytes / min(slowest["sum"], slowest["dot"])
        records.write({"elements": elements, "history": history, "processes": processes, **slowest})
        shares.append(reads / bandwidth)
        speeds.append(bandwidth)
        spent.append(slowest["direction"])
    for worker in workers:
        worker.join()
    row = [
        f"{elements:,} elements, m = {history}, {processes} processes",
        f"{1e3 * statistics.median(spent):.0f}",
        f"{statistics.median(speeds) / 1e9:.1f}",
        f"{statistics.median(shares):.0%}",
        f"{min(shares):.0%} to {max(shares):.0%}",
    ]
    print(harness.table(["direction", "ms", "reading GB/s", "share of it", "rounds"], [row]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=25_000_000)
    parser.add_argument("--history", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", choices=("evaluations", "direction"))
    given = parser.parse_args()
    records = harness.Records("lbfgs", vars(given))
    if given.only != "direction":
        evaluations(records)
    if given.only != "evaluations":
        direction(given.elements, given.history, given.processes, given.rounds, records)
    print(f"\nrecords: {records.path}")


if __name__ == "__main__":
    main()
