"""Memory of the training set over all processes of a machine, for P = 1, 2, 4: it should be there once, whatever P is.

`squall train cifar10` runs with the whole training set; after a little more than one epoch, when the processes have
together touched every image, their mappings are read from /proc/PID/smaps. Two witnesses:

* held: mappings as large as the training set, a shared one (memfd) counted once by its inode, a private copy each time;
* sum of Pss: Pss divides each page among the processes that map it, so a shared page counts once over all of them.

    python benchmarks/memory.py --data DIR
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from harness import FailedError, Records, family, started, table, tail

SET_BYTES = 50_000 * 32 * 32 * 3
MB = 1e6


@dataclass(frozen=True)
class Mapping:
    """One mapping of one process that holds a training set; bytes."""

    pid: int
    inode: int  # 0: private memory
    size: int
    rss: int
    pss: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds cifar10/")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--updates", type=int, default=400, help="read after so many; an epoch has 391 of 128 images")
    options = parser.parse_args()
    records = Records("memory", {"processes": options.processes, "set_bytes": SET_BYTES, "updates": options.updates})
    rows, copies = [], []
    for processes in options.processes:
        with tempfile.TemporaryDirectory(prefix="squall-memory-") as scratch:
            maps, everything = measure(processes, options.updates, options.data, Path(scratch))
        held = bytes_held(maps)
        copies += [held / SET_BYTES, sum(m.pss for m in maps) / SET_BYTES]
        what = {"held": held, "all_pss": everything, "mappings": [asdict(m) for m in maps]}
        records.write({"kind": "run", "contender": "squall train cifar10", "processes": processes, **what})
        shares = [f"{number:.2f}" for number in copies[-2:]]
        amounts = [sum(m.rss for m in maps), sum(m.pss for m in maps), everything, everything / processes]
        cells = [f"{amount / MB:,.0f} MB" for amount in amounts]
        rows.append([str(processes), str(len(maps)), cells[0], cells[1], *shares, cells[2], cells[3]])
    print(f"the training set: {SET_BYTES / MB:.1f} MB\n")
    header = [
        "processes",
        "mappings",
        "sum of Rss",
        "sum of Pss",
        "copies held",
        "by Pss",
        "all memory, Pss",
        "a process",
    ]
    print(table(header, rows))
    once = all(0.5 < number < 1.1 for number in copies)
    print(f"\n{'ok: held once, whatever P is' if once else 'MISSED: not held once'}\nrecords: {records.path}")
    return 0 if once else 1


def bytes_held(maps: list[Mapping]) -> int:
    """Memory behind the mappings: shared files once, private copies each."""
    shared = {m.inode: m.size for m in maps if m.inode}
    return sum(shared.values()) + sum(m.rss for m in maps if not m.inode)


def measure(
    processes: int, updates: int, data: Path, scratch: Path, deadline_s: float = 600.0
) -> tuple[list[Mapping], int]:
    """The mappings that hold a training set, and the Pss of everything, while the processes train."""
    folder, log = scratch / "run", scratch / "log"
    command = [sys.executable, "-m", "squall", "train", "cifar10", "--processes", str(processes)]
    command += ["--data", str(data), "--out", str(folder), "epochs=2", "lr.warmup_epochs=0", "data.test_limit=500"]
    begin = time.monotonic()
    with started(command, log) as process:
        while _num_steps(folder / "records.jsonl") < updates:
            if process.poll() is not None or time.monotonic() - begin > deadline_s:
                raise FailedError(f"{processes} processes: ended before update {updates}\n{tail(log)}")
            time.sleep(0.2)
        read = [mappings(pid, SET_BYTES) for pid in family(process.pid)]
    maps = [m for of_process, _ in read for m in of_process]
    if len({m.pid for m in maps}) != processes:
        raise FailedError(f"{len({m.pid for m in maps})} processes map a training set, not {processes}\n{tail(log)}")
    return maps, sum(pss for _, pss in read)


def mappings(pid: int, size: int) -> tuple[list[Mapping], int]:
    """Mappings of a process that can hold an array of `size` bytes, and the Pss of all its memory.

    A memfd of at least this size, or private memory of which at least this much is resident.
    """
    found, everything = [], 0
    path, inode, length, rss = "", 0, 0, 0
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines():
        fields = line.split()
        if not fields[0].endswith(":"):
            low, high = (int(edge, 16) for edge in fields[0].split("-"))
            path, inode, length = " ".join(fields[5:]), int(fields[4]), high - low
        elif fields[0] == "Rss:":
            rss = 1024 * int(fields[1])
        elif fields[0] == "Pss:":
            pss = 1024 * int(fields[1])
            everything += pss
            if path.startswith("/memfd:") and length >= size:
                found.append(Mapping(pid, inode, length, rss, pss))
            elif not inode and rss >= size:
                found.append(Mapping(pid, 0, length, rss, pss))
    return found, everything


def _num_steps(records: Path) -> int:
    return records.read_text(encoding="utf-8").count('"kind": "step"') if records.exists() else 0


if __name__ == "__main__":
    sys.exit(main())
