"""The runs in a folder, and how each stands: whether it goes on now, how far it came, what it reached.

How a folder tells that is told in `squall.report.folder`. Of long files only the ends are read (`tails`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from squall.checkpoint import files, manifest
from squall.cli import tails
from squall.cli.tails import Values, number, whole
from squall.errors import InputError, nearest
from squall.report import folder as disk
from squall.report.folder import JOB as JOB  # `submit` and `batch` know it from here
from squall.report.folder import LOCK, RECIPE, RECORDS, RESULT, SESSIONS, STARTED
from squall.report.values import mapping
from squall.run.folder import CHECKPOINTS

LIVE_JOB = ".job"
"""The number of the batch job that works on a run, or comes again to: there until it is over, or asked to stop."""

LAST = "last"

_RESUMABLE = ("killed", "stopped", "failed")  # the same bits would diverge again
_BEGUN = (STARTED, RECIPE, RECORDS, JOB, RESULT)  # when a run began: what is written once, and first, comes first
_MOVED = (RECORDS, RESULT, JOB, STARTED, RECIPE)  # when it moved last
_LONGEST_NUMBER = 40
_TOLD_AS = {"downpour": "push", "sandblaster": "epoch"}  # what others tell as steps


@dataclass(frozen=True, kw_only=True)
class State:
    """A run as it stands. What its folder does not tell is None or empty.

    Attributes:
        folder: the run's.
        state: submitted, running, finished, stopped, diverged, failed or killed.
        why: what ended it, in a line.
        epoch: the one that it is in, from 1.
        epochs: of all.
        step: updates that were applied; of batch optimisation, iterations.
        steps: of all.
        evaluations: of the batch; a run of batch optimisation counts these, and has neither epochs nor steps of all.
        budget: evaluations that it may take.
        score: what it reached: name and value.
        strategy: sync, downpour, sandblaster.
        processes: of its last session; of an asynchronous run, replicas.
        shards: of an asynchronous run.
        samples_per_second: in its last epoch.
        began: seconds since 1970.
        seconds: that it worked.
        checkpoint: updates in its newest checkpoint.
        job: the number of the batch job that works on it, or waits to.
    """

    folder: Path
    state: str
    why: str = ""
    epoch: int | None = None
    epochs: int | None = None
    step: int = 0
    steps: int | None = None
    evaluations: int | None = None
    budget: int | None = None
    score: tuple[str, float] | None = None
    strategy: str = ""
    processes: int | None = None
    shards: int | None = None
    samples_per_second: float | None = None
    began: float | None = None
    seconds: float | None = None
    checkpoint: int | None = None
    job: str = ""

    @property
    def running(self) -> bool:
        """Its processes are at work."""
        return self.state == "running"

    @property
    def replicated(self) -> bool:
        """It is one of replicas and shards."""
        return self.shards is not None

    @property
    def resumable(self) -> bool:
        """It can go on from a checkpoint."""
        return self.state in _RESUMABLE and self.checkpoint is not None


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk: its updates, bytes, and when it was whole, in seconds since 1970."""

    step: int
    num_bytes: int
    time: float


def found_in(runs: Path) -> list[Path]:
    """The folders of the runs in a folder, those that moved last first."""
    times = {}
    with suppress(OSError), os.scandir(runs) as entries:
        for entry in entries:
            folder = Path(entry.path)
            with suppress(OSError):
                if entry.is_dir() and is_run(folder):
                    times[folder] = _time_of(folder, _MOVED) or 0.0
    return sorted(times, key=lambda folder: (times[folder], folder.name), reverse=True)


def find(run: str, runs: Path) -> Path:
    """The folder that RUN means: a path, a name in the folder of runs, or "last".

    Raises:
        InputError: there is none; names those that are near, or the newest.
    """
    if run == LAST:
        if folders := found_in(runs):
            return folders[0]
        raise InputError(f"there is no run in {runs}/ yet", [("to do", "squall train digits")])
    for path in (Path(run), runs / run):
        if is_run(path):
            return path
    known = [folder.name for folder in found_in(runs)]
    near, newest = nearest(Path(run).name, known), known[:3]
    rows = [("near" if near else "newest", ", ".join(near or newest))] if known else []
    raise InputError(f"{run} is no run's folder", rows, "all runs: squall runs")


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's: many a program writes a result.json, none but us the rest."""
    try:
        names = {entry.name for entry in os.scandir(folder)}
    except OSError:
        return False
    if names & {RECORDS, SESSIONS} or {LOCK, RECIPE} <= names or {LOCK, STARTED} <= names:
        return True
    return (RESULT in names and "outcome" in disk.read_json(folder / RESULT)) or (folder / JOB).is_file()


def look(folder: Path) -> State:
    """A run as it stands, from the ends of its files."""
    running = disk.held(folder)
    begun = tails.first(folder / RECORDS)
    strategy = str(begun.get("strategy", ""))
    batch = strategy == "sandblaster"
    ends = tails.last(folder / RECORDS, *{_TOLD_AS.get(strategy, "step"), "epoch"})
    sessions = tails.last(folder / SESSIONS, "session", "session_ended", "resized")
    session, ended = sessions.get("session", {}), sessions.get("session_ended", {})
    met = list(sessions)  # from the end of the file
    changed = "resized" in met and met.index("resized") < (met.index("session") if "session" in met else len(met))
    resized = sessions["resized"] if changed else {}
    if (number(ended.get("time")) or 0.0) < (number(session.get("time")) or 0.0):
        ended = {}
    result = {} if running else disk.result_of(folder, session)
    epoch = ends.get("epoch", {})
    step = _as_iteration(epoch) if batch else ends.get("step", {}) or _as_step(ends.get("push", {}), begun)
    saved = steps_saved(folder)
    said = (result, ended, next(tails.newest(folder / RECORDS), {}))
    state = disk.state(
        running=running,
        outcomes=[found.get("outcome") for found in said],
        submitted=(folder / JOB).is_file() and not (folder / RECORDS).exists(),
    )
    reached = whole(step.get("epoch"))
    return State(
        folder=folder,
        state=state,
        why="" if running else str(result.get("error") or ended.get("why") or _minimum(result)),
        epoch=None if reached is None else reached + 1,
        epochs=None if batch else whole(begun.get("epochs")),
        step=_done(result, step),
        steps=None if batch else whole(begun.get("num_steps")),
        evaluations=_evaluations(result, epoch) if batch else None,
        budget=whole(begun.get("epochs")) if batch else None,
        score=score_of(result) or score_of(_flat(epoch)) or _loss(step),
        strategy=strategy,
        processes=next(
            (
                n
                for n in (
                    whole(resized.get("replicas")),
                    *(whole(values.get("processes")) for values in (session, result, begun)),
                )
                if n is not None
            ),
            None,
        ),
        shards=whole(begun.get("shards")) or None,
        samples_per_second=number(result.get("samples_per_second")) or _speed(folder, epoch),
        began=number(tails.first(folder / SESSIONS).get("time")) or _time_of(folder, _BEGUN),
        seconds=number(result.get("seconds")) or number(step.get("seconds")),
        checkpoint=saved[0] if saved else None,
        job=_job(folder, state),
    )


def steps_saved(folder: Path) -> list[int]:
    """Updates in the checkpoints that were written to their end, the newest first."""
    return _steps(folder) or [settled for settled, _ in _sets(folder)]


def checkpoints(folder: Path) -> Iterator[Saved]:
    """The checkpoints of a run, the newest first."""
    for step, manifest_ in _sets(folder):
        with suppress(OSError):
            sizes = [path.stat().st_size for path in _files_of(manifest_)]
            yield Saved(step, sum(sizes), manifest_.stat().st_mtime)
    for step in _steps(folder):
        path = _manifest(folder, step)
        with suppress(OSError):  # training takes old ones away
            sizes = [entry.stat().st_size for entry in path.parent.iterdir() if entry.is_file()]
            yield Saved(step, sum(sizes), path.stat().st_mtime)


def _steps(folder: Path) -> list[int]:
    with suppress(OSError):
        return [step for step in files.steps_of(folder / CHECKPOINTS) if _manifest(folder, step).is_file()]
    return []


def _sets(folder: Path) -> list[tuple[int, Path]]:
    """Of an asynchronous run: what was settled, and the manifest, of sets that all shards have saved, newest first."""
    paths = sorted((folder / disk.SNAPSHOTS).glob("[0-9]*.json"), reverse=True)
    known = [(whole(disk.read_json(path).get("settled")), path) for path in paths]
    return [(settled, path) for settled, path in known if settled is not None]


def _files_of(set_: Path) -> list[Path]:
    """The shards' files of a set by its manifest; with the pairs that it shares with older and newer ones."""
    pairs = [path for path in set_.parent.glob("pairs-*.safetensors") if path.stem.rpartition("-")[2] <= set_.stem]
    return [*set_.parent.glob(f"shard-*-{set_.stem}.safetensors"), *pairs]


def _manifest(folder: Path, step: int) -> Path:
    return folder / CHECKPOINTS / files.name_of(step) / manifest.FILE


def score_of(values: Values) -> tuple[str, float] | None:
    """What a person asks for first: test before validation, accuracy before the rest, the training loss at last."""
    for split, word in (("test", "test"), ("val", "validation")):
        names = [key.removeprefix(f"{split}_") for key in values if key.startswith(f"{split}_")]
        names = [name for name in names if not name.endswith("_median_last5")]
        for name in sorted(names, key=lambda name: (name != "accuracy", name == "loss")):
            if (value := number(values[f"{split}_{name}"])) is not None:
                return f"{word} {name}", value
    loss = number(values.get("train_loss"))
    return None if loss is None else ("train loss", loss)


def _job(folder: Path, state: str) -> str:
    with suppress(OSError, ValueError):
        return (folder / LIVE_JOB).read_text(encoding="utf-8").strip()[:_LONGEST_NUMBER]
    return str(disk.read_json(folder / JOB).get("job", "")) if state == "submitted" else ""


def _done(result: Values, step: Values) -> int:
    done = whole(result.get("steps"))
    if done is not None:
        return done
    index = whole(step.get("step"))
    return 0 if index is None else index + 1


def _as_step(push: Values, begun: Values) -> Values:
    """A push as the step of the last minibatch that was settled by then."""
    settled, per_epoch = whole(push.get("settled")), whole(begun.get("steps_per_epoch"))
    if not settled:
        return {}
    epoch = {"epoch": (settled - 1) // per_epoch} if per_epoch else {}
    return {**push, **epoch, "step": settled - 1}


def _as_iteration(epoch: Values) -> Values:
    """An iteration's record as its step."""
    return {"step": epoch.get("epoch"), "seconds": epoch.get("seconds")}


def _evaluations(result: Values, epoch: Values) -> int:
    """Of the batch, as they were told at the end, or with the last iteration."""
    done = whole(result.get("evaluations"))
    return _done({}, epoch) if done is None else done


def _minimum(result: Values) -> str:
    """Why L-BFGS went no further."""
    minimum = mapping(result.get("minimum"))
    return f"{minimum['outcome']}, {minimum.get('why', '')}" if "outcome" in minimum else ""


def _flat(epoch: Values) -> Values:
    """An epoch's record with the names of a result."""
    values = {"train_loss": epoch.get("train_loss")}
    for split in ("test", "val"):
        if isinstance(epoch.get(split), dict):
            values |= {f"{split}_{name}": value for name, value in epoch[split].items()}
    return values


def _loss(step: Values) -> tuple[str, float] | None:
    loss = number(step.get("loss"))
    return None if loss is None else ("loss", loss)


def _speed(folder: Path, epoch: Values) -> float | None:
    """Samples a second: of the last epoch, or over the last steps where none has ended."""
    if (speed := number(epoch.get("samples_per_second"))) is not None:
        return speed
    steps = [record for record in tails.newest(folder / RECORDS) if record["kind"] in ("step", "push")]
    times = [number(step.get("seconds")) for step in steps]
    if len(steps) < 2 or times[0] is None or times[-1] is None or times[0] <= times[-1]:
        return None
    return sum(whole(step.get("samples")) or 0 for step in steps[:-1]) / (times[0] - times[-1])


def _time_of(folder: Path, names: tuple[str, ...]) -> float | None:
    """When the first of these files that is there was written, in seconds since 1970; else the folder itself."""
    for path in (*(folder / name for name in names), folder):
        with suppress(OSError):
            return path.stat().st_mtime
    return None
