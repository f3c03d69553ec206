"""What kept a training from being observed: a crash, a hang, no update, processes of its own.

How the ranks ended is known from the stage, what they did until then from their traces. The line that is shown is the
user's: the innermost of the error's frames, or of the stack where a rank was when its time was over.
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Mapping, Sequence
from typing import Any

from squall import units
from squall.verify import devices
from squall.verify.checks.training import count, shown
from squall.verify.finding import Place, Trouble
from squall.verify.masking import masked, masked_line
from squall.verify.observe.recorder import is_users
from squall.verify.restoring import Restored
from squall.verify.stage import Ended, RankEnd
from squall.verify.trace import Run

_LISTED = 5
_SPAWNED = "OwnProcessesError"
_LOST = ("closed by peer", "reset by peer", "distbackenderror", "distnetworkerror", "diststoreerror", "gloo", "nccl")


def troubles(script: str, ended: Ended, run: Run | None, limit_s: float) -> list[Trouble]:
    """All that went wrong in one run."""
    name = shown(script) if script.endswith(".py") else script
    processes = len(ended.ranks)
    found: list[Trouble] = []
    observed = run is not None and bool(run.first.steps)
    enough = run is not None and all(rank.of("enough") for rank in run.ranks)
    failed = [
        rank for rank in ended.ranks if rank.error is not None or rank.status or (rank.signal and not rank.ended_by_us)
    ]
    if failed:
        found.append(_failed(name, ended, failed, run))
    elif ended.out_of_time and not enough:
        found.append(_hung(name, ended, limit_s, observed))
    elif not observed:
        found.append(_never(name, processes, run))
    left = run is not None and any(rank.about.get("ended") == "left" for rank in run.ranks)  # by us, in mid-epoch
    if ended.left_behind and not left:
        found.append(
            Trouble(
                what="left processes behind",
                says=f"{name} left {count(len(ended.left_behind), 'process')} behind with "
                f"{count(processes, 'process')}; they were ended",
                processes=processes,
                rows=tuple((f"process {pid}", _command(words)[:200]) for pid, words in ended.left_behind[:5]),
                fatal=False,
            )
        )
    return found


def _failed(name: str, ended: Ended, failed: Sequence[RankEnd], run: Run | None) -> Trouble:
    processes = len(ended.ranks)
    first = min(failed, key=lambda rank: (_is_consequence(rank), rank.rank != ended.first_failed))
    rows: list[tuple[str, str]] = []
    if first.error is not None:
        place = innermost(first.error["frames"])
        if first.error["type"].endswith(_SPAWNED):
            return Trouble(
                what="started its own processes",
                says=f"{name} starts its own processes",
                place=place,
                processes=processes,
                rows=(
                    ("found", "torch.multiprocessing.spawn in a rank"),
                    (
                        "rule",
                        "verify starts the ranks, with torchrun's environment (RANK, WORLD_SIZE, MASTER_ADDR, ...)",
                    ),
                    ("to do", "let the script train as one rank where RANK is set, as under torchrun"),
                ),
            )
        message = str(first.error["message"]).strip().splitlines()
        rows.append((f"rank {first.rank}", f"{first.error['type']}: {message[0] if message else ''}"))
        what, says = "crashed", f"{name} crashed with {count(processes, 'process')}"
    elif first.signal:
        place = innermost(first.stack)
        rows.append((f"rank {first.rank}", f"killed by {signal.Signals(first.signal).name}"))
        what, says = "crashed", f"{name} was killed with {count(processes, 'process')}"
    else:
        place = None
        rows.append((f"rank {first.rank}", f"left with exit status {first.status}"))
        what, says = "ended early", f"{name} ended early with {count(processes, 'process')}"
        rows += [("", masked_line(line)) for line in first.last_lines[-3:]]
    others = [rank.rank for rank in ended.ranks if rank.ended_by_us]
    if others:
        rows.append(
            ("others", f"{'rank' if len(others) == 1 else 'ranks'} {', '.join(map(str, others))} waited for it")
        )
    if run is not None and any(event["run"] and len(event["run"]) < event["batches"] for event in run.first.of("pass")):
        rows.append(("note", "long epochs are cut, and len(loader) says so: try --steps 200 if that is the cause"))
    if 0 < (gpus := devices.count()) < processes:
        rows.append(("note", f"this machine has {gpus} GPU{'' if gpus == 1 else 's'}: {devices.ON_CPU}"))
    return Trouble(what=what, says=says, place=place, processes=processes, rows=tuple(rows))


def of_files(script: str, restored: Restored, processes: int, found: Sequence[Trouble]) -> list[Trouble]:
    """With what is to be said of the user's files.

    Arguments:
        found: the troubles of the run; where a file could not be put aside, that is why it could not go on.
    """
    name = shown(script) if script.endswith(".py") else script
    found = list(found)
    if restored.refused:
        ended = [trouble for trouble in found if trouble.what in ("crashed", "ended early", "never stepped")]
        found = [trouble for trouble in found if trouble not in ended]
        found.insert(
            0,
            Trouble(
                what="file not kept",
                says=f"{name} was stopped before it changed a file of which no copy could be made",
                place=next((trouble.place for trouble in ended), None),
                processes=processes,
                rows=(
                    *((path, f"{units.megabytes(size)}: {why}") for path, size, why in restored.refused[:5]),
                    ("rule", "what a run changes is copied first, and put back afterwards"),
                    ("to do", "TMPDIR=FOLDER squall verify ... where there is room for the copy; or let it write"),
                    ("", "to another place (-- --out {folder}); or open what it only reads for reading (mode='r')"),
                ),
                fatal=bool(ended),
            ),
        )
    if restored.stay:
        more = len(restored.stay) - _LISTED
        found.append(
            Trouble(
                what="new files elsewhere",
                says=f"{name} has written new files that stay; the next run finds them",
                processes=processes,
                rows=(
                    *(("new", path) for path in restored.stay[:_LISTED]),
                    *([("", f"and {more} more")] if more > 0 else []),
                    ("to do", "if it goes on from them: another place for each run, as in -- --out {folder}"),
                ),
                fatal=False,
            )
        )
    return found


def _command(words: str) -> str:
    """A command line without its secrets."""
    try:
        return shlex.join(masked(shlex.split(words)))
    except ValueError:
        return masked_line(words)


def _is_consequence(rank: RankEnd) -> bool:
    """Whether a rank only says that it lost another one."""
    if rank.error is None:
        return False
    text = f"{rank.error['type']}: {rank.error['message']}".lower()
    return any(word in text for word in _LOST)


def _hung(name: str, ended: Ended, limit_s: float, observed: bool) -> Trouble:
    rows = []
    place = None
    for rank in ended.ranks:
        if not rank.ended_by_us:
            rows.append((f"rank {rank.rank}", "had ended"))
            continue
        at = innermost(rank.stack)
        place = place or at
        inner = rank.stack[-1]["function"] if rank.stack else ""
        rows.append(
            (f"rank {rank.rank}", f"{at} {at.text}" + (f"   ({inner})" if inner else "") if at else "not known")
        )
    says = "made updates, and did not come to the end" if observed else "did not come to the end of the observed epochs"
    rows.append(("found", f"in {limit_s:g} s it {says}"))
    rows.append(("to do", "--limit for more time, --steps for fewer updates; or look at the line above"))
    return Trouble(
        what="hung",
        says=f"{name} was not done after {limit_s:g} s with {count(len(ended.ranks), 'process')}",
        place=place,
        processes=len(ended.ranks),
        rows=tuple(rows),
    )


def _never(name: str, processes: int, run: Run | None) -> Trouble:
    rows: list[tuple[str, str]] = []
    if run is not None:
        rank = run.first
        calls, updates = len(rank.of("forward")), len(rank.of("step"))
        rows.append(
            (
                "found",
                f"{calls} calls of a network, {len(rank.backwards)} backward passes, {updates} updates of torch.optim",
            )
        )
    rows.append(("rule", "a script that trains when it is run: python SCRIPT, or under torchrun"))
    rows.append(("to do", "give it the arguments with which it trains: squall verify SCRIPT -- ARGUMENTS"))
    return Trouble(what="never stepped", says=f"{name} ended and made no update", processes=processes, rows=tuple(rows))


def innermost(frames: Sequence[Mapping[str, Any]]) -> Place | None:
    """The innermost line of the user's own code."""
    for frame in reversed(frames):
        if is_users(str(frame["path"])):
            return Place(
                path=shown(str(frame["path"])), line=int(frame["line"]), text=str(frame.get("text", "")).strip()
            )
    return None
