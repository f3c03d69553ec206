"""Memory of the training set over all processes of a machine, for P = 1, 2, 4: it should be there once, whatever P is.

`squall train cifar10` runs with the whole training set; after a little more than one epoch, when the processes have
together touched every image, their memory is looked at through /proc/PID:

* held: shared mappings (memfd) as large as the set, each counted once by its inode, and copies in private memory. Those
  are found by content: images taken from all over the set are looked for in everything that is private and writable.
* Pss: divides each page among the processes that map it, so a shared page counts once over all of them.

    python benchmarks/memory.py --data DIR
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from harness import FailedError, Records, family, started, table, tail

from squall.data import cifar

SET_BYTES = 50_000 * 32 * 32 * 3
MB = 1e6


@dataclass(frozen=True)
class Memory:
    """Where one process holds the training set; bytes."""

    pid: int
    shared: dict[int, int]  # inode of a memfd as large as the set: its Pss here
    private: float  # share of the images looked for that also lie in private memory
    pss: int  # of everything


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds cifar10/")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--updates", type=int, default=200, help="read after so many; an epoch has 196 of 256 images")
    options = parser.parse_args()
    records = Records("memory", {"processes": options.processes, "set_bytes": SET_BYTES, "updates": options.updates})
    images = some_images(options.data)
    rows, copies = [], []
    for processes in options.processes:
        with tempfile.TemporaryDirectory(prefix="squall-memory-") as scratch:
            held = measure(processes, options.updates, options.data, Path(scratch), images)
        shared = {inode: SET_BYTES for memory in held for inode in memory.shared}
        private = sum(memory.private for memory in held)
        copies.append(len(shared) + private)
        pss = sum(sum(memory.shared.values()) for memory in held)
        everything = sum(memory.pss for memory in held)
        ranks = [asdict(memory) for memory in held]
        records.write({"kind": "run", "contender": "squall train cifar10", "processes": processes, "ranks": ranks})
        amounts = [f"{amount / MB:,.0f} MB" for amount in (pss, everything, everything / len(held))]
        rows.append([str(processes), str(len(shared)), f"{private:.2f}", f"{copies[-1]:.2f}", *amounts])
    print(f"the training set: {SET_BYTES / MB:.1f} MB\n")
    header = ["ranks", "shared", "private copies", "copies", "Pss of the set", "all memory, Pss", "a rank"]
    print(table(header, rows))
    once = all(number < 1.1 for number in copies)
    print(f"\n{'ok: held once, whatever P is' if once else 'MISSED: not held once'}\nrecords: {records.path}")
    return 0 if once else 1


def some_images(data: Path) -> list[bytes]:
    """The bytes of some images of the training set, as they lie in memory: (H, W, C)."""
    images, _ = cifar.read(data / "cifar10", "train")
    return [images[number].tobytes() for number in range(0, len(images), len(images) // 16)]


def measure(
    processes: int, updates: int, data: Path, scratch: Path, images: list[bytes], deadline_s: float = 600.0
) -> list[Memory]:
    """What each rank holds while all train."""
    folder, log = scratch / "run", scratch / "log"
    command = [sys.executable, "-m", "squall", "train", "cifar10", "--processes", str(processes)]
    command += ["--data", str(data), "--out", str(folder), "epochs=4", "lr.warmup_epochs=0", "data.test_limit=500"]
    command += ["model.width=4"]  # the set is what counts here
    begin = time.monotonic()
    with started(command, log) as process:
        while _num_steps(folder / "records.jsonl") < updates:
            if process.poll() is not None or time.monotonic() - begin > deadline_s:
                raise FailedError(f"{processes} processes: ended before update {updates}\n{tail(log)}")
            time.sleep(0.2)
        found = []
        pids = family(process.pid)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)  # nobody trains on, or ends, while one is looked at
        for pid in pids:
            with suppress(FileNotFoundError, ProcessLookupError):  # a helper that has just ended
                found.append(memory_of(pid, images))
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    ranks = [memory for memory in found if memory.shared or memory.private]
    if len(ranks) != processes:
        raise FailedError(f"{len(ranks)} processes hold a training set, not {processes}\n{tail(log)}")
    return ranks


def memory_of(pid: int, images: list[bytes]) -> Memory:
    """Looks at the mappings of one process."""
    shared: dict[int, int] = {}
    missing, everything = set(images), 0
    inode, is_set = 0, False
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines():
            fields = line.split()
            if not fields[0].endswith(":"):
                low, high = (int(edge, 16) for edge in fields[0].split("-"))
                path, inode = " ".join(fields[5:]), int(fields[4])
                is_set = path.startswith("/memfd:") and high - low >= SET_BYTES
                if fields[1].startswith("rw-p") and missing:
                    memory.seek(low)
                    content = memory.read(high - low)
                    missing = {image for image in missing if image not in content}
            elif fields[0] == "Pss:":
                everything += 1024 * int(fields[1])
                if is_set:
                    shared[inode] = 1024 * int(fields[1])
    return Memory(pid, shared, 1 - len(missing) / len(images), everything)


def _num_steps(records: Path) -> int:
    return records.read_text(encoding="utf-8").count('"kind": "step"') if records.exists() else 0


if __name__ == "__main__":
    sys.exit(main())
