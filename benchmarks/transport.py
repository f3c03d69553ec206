"""How fast a gradient reaches a parameter server and weights come back: push and pull in one call, Adagrad applied.

    python benchmarks/transport.py [--elements 25000000 1000] [--rounds 15] [--only NAME ...]
    python benchmarks/transport.py --hosts            # as root: caller and callee in two network namespaces

All contenders are started first and then asked in turns, so that they meet the same conditions: one call a turn, or
with small vectors twenty, whose median counts. What each has at the end is held against the same steps done here, bit
for bit (a kernel that is not torch's: the first step). The work, the same for all, stands in `transports/base.py`.

| contender | what carries a call |
|---|---|
| `bare_memory` | the limit on one machine: two memory files mapped once, a byte in a pipe each way |
| `squall` | Squall's engine as a training uses it: a shard and a client, roles on Ray; between hosts too |
| `squall_windows`, `squall_pairs` | its ways of carrying tensors alone: shared memory, Gloo pairs |
| `bare_gloo_whole`, `bare_gloo_pieces` | a Gloo group of two, tensors as one message or as pieces of 16 MiB |
| `torch_rpc` | torch.distributed.rpc over TensorPipe |
| `ray_actor`, `ray_actor_fused` | a plain Ray actor that keeps NumPy arrays: Adagrad in NumPy; torch's kernel |
| `monarch_actor` | a Monarch actor with NumPy arrays |
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path

import harness
import torch
from transports import bare, engine, peers
from transports.base import Contender, Where, expected, started
from transports.hosts import ADDRESSES, ray_cluster, two_hosts

CONTENDERS: dict[str, type[Contender]] = {
    "bare_memory": bare.BareMemory,
    "bare_gloo_whole": bare.BareGloo,
    "bare_gloo_pieces": bare.BareGlooPieces,
    "squall": engine.Engine,
    "squall_windows": bare.Windows,
    "squall_pairs": bare.Pairs,
    "torch_rpc": peers.TorchRpc,
    "ray_actor": peers.RayActor,
    "ray_actor_fused": peers.FusedRayActor,
    "monarch_actor": peers.MonarchActor,
}

SMALL, CALLS = 100_000, 20  # calls a turn, for vectors smaller than this


def measure(names: list[str], num_elements: int, rounds: int, where: Where, records: harness.Records) -> None:
    """All contenders in turns; each turn is one record."""
    calls = CALLS if num_elements < SMALL else 1
    with started({name: CONTENDERS[name] for name in names}, num_elements, where) as contenders:
        for contender in contenders.values():
            contender.calls(1)
        check(contenders, num_elements, 1)
        for turn in range(rounds):
            for name, contender in contenders.items():
                seconds = contender.calls(calls)
                records.write(
                    {"kind": "run", "contender": f"{name} {num_elements:,}", "round": turn, "seconds": seconds}
                )
        exact = {name: contender for name, contender in contenders.items() if contender.exact}
        check(exact, num_elements, 1 + calls * rounds)


def check(contenders: dict[str, Contender], num_elements: int, calls: int) -> None:
    """Whether all have the weights of so many steps."""
    wanted = expected(num_elements, calls)
    for name, contender in contenders.items():
        if contender.found() != wanted:
            raise harness.FailedError(f"{name}: the weights that came back are not those of {calls} steps")


def show(path: Path, elements: list[int], ours: str) -> None:
    """The table: medians, bytes both ways over time, and how many times as fast `ours` is, inside each round."""
    times = harness.rounds_of(harness.read(path), "seconds")
    rows = []
    for name, by_round in times.items():
        num_elements = int(name.rpartition(" ")[2].replace(",", ""))
        median = statistics.median(by_round.values())
        mine = times.get(f"{ours} {num_elements:,}", {})
        ratios = harness.paired_ratios(by_round, mine)  # of times: how many times as fast
        gigabytes = 8 * num_elements / median / 1e9
        ratio = [f"{statistics.median(ratios):.2f}x", f"{min(ratios):.2f} to {max(ratios):.2f}"] if ratios else ["", ""]
        rows.append([name, f"{1e3 * median:.2f}", f"{gigabytes:.2f}", *ratio])
    print(harness.table(["push + pull", "ms", "GB/s", f"{ours} is", "rounds"], rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, nargs="+", default=[25_000_000, 1000])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--ours", choices=CONTENDERS, default="squall", help="the one that is compared with the others")
    parser.add_argument("--hosts", action="store_true", help="between two network namespaces; root only")
    parser.add_argument("--show", type=Path, help="prints the table of an old record")
    given = parser.parse_args()
    if given.show:
        show(given.show, given.elements, given.ours)
        return
    names = [name for name in given.only if CONTENDERS[name].between_hosts or not given.hosts]
    missing = {name: CONTENDERS[name].lacks() for name in names if CONTENDERS[name].lacks()}
    for name, reason in missing.items():
        print(f"{name} is left out: {reason}", file=sys.stderr)
    names = [name for name in names if name not in missing]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leaves nothing behind: processes, namespaces
    torch.set_num_threads(1)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # of the callees: namespaces have no names for addresses
    settings = {
        "elements": given.elements,
        "rounds": given.rounds,
        "hosts": given.hosts,
        "contenders": names,
        "left_out": missing,
    }
    records = harness.Records("transport", settings)
    with ExitStack() as stack:
        where = Where()
        if given.hosts:
            spaces = stack.enter_context(two_hosts())
            where = Where(ADDRESSES, spaces[1], stack.enter_context(ray_cluster(spaces)))
        for num_elements in given.elements:
            measure(names, num_elements, given.rounds, where, records)
    show(records.path, given.elements, given.ours)
    print(f"\nrecords: {records.path}")


if __name__ == "__main__":
    main()
