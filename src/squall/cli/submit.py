"""`squall train ... --submit slurm`: the same command as a job of SLURM, which comes again until the run is finished.

submitit writes the batch file and hands it over (it knows sbatch's flags and answers); what the file runs is a plain
`srun squall train` (`batch.py`), so that nothing is pickled and a person can read and change it. For those who write
their own: `examples/slurm.sbatch`.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from squall.cli import batch
from squall.cli.batch import Options
from squall.cli.overview import word
from squall.cli.processes import Span
from squall.cli.states import JOB
from squall.errors import InputError, MissingExtraError, Mistakes, SquallError
from squall.run.folder import write_json
from squall.units import count


class System(StrEnum):
    """Where jobs can be submitted."""

    slurm = "slurm"


_PANEL = "As a job"

SubmitFlag = Annotated[
    System | None,
    typer.Option("--submit", help="Submit a job instead of training here.", rich_help_panel=_PANEL, show_default=False),
]
NodesFlag = Annotated[
    int | None, typer.Option("--nodes", min=1, help="Machines.", rich_help_panel=_PANEL, show_default=False)
]
GpusFlag = Annotated[
    int | None,
    typer.Option(
        "--gpus-per-node", min=1, help="A process each, unless --processes.", rich_help_panel=_PANEL, show_default=False
    ),
]
CpusFlag = Annotated[
    int | None,
    typer.Option(
        "--cpus-per-process", min=1, help="For it and its loaders.", rich_help_panel=_PANEL, show_default=False
    ),
]
TimeFlag = Annotated[
    str | None,
    typer.Option(
        "--time", metavar="T", help="At a stretch: 8h, 90min, 2d.", rich_help_panel=_PANEL, show_default=False
    ),
]
PartitionFlag = Annotated[
    str | None, typer.Option("--partition", metavar="NAME", rich_help_panel=_PANEL, show_default=False)
]
SbatchFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--sbatch", metavar="KEY=VALUE", help="More for sbatch: account=x.", rich_help_panel=_PANEL, show_default=False
    ),
]

_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(min|h|d)")
_MINUTES = {"min": 1, "h": 60, "d": 1440}
_SLURM_TIME = re.compile(r"\d+-\d+(:\d+){0,2}|\d+(:\d+){1,2}")
_OWN = {  # flags that a job cannot do without, and where they come from
    **dict.fromkeys(("signal", "requeue", "no-requeue", "open-mode", "output", "error", "array"), "set by Squall"),
    **dict.fromkeys(("ntasks", "ntasks-per-node", "gpus-per-task"), "--processes in all, or --gpus-per-node"),
    "nodes": "--nodes",
    "gpus-per-node": "--gpus-per-node",
    "cpus-per-task": "--cpus-per-process",
}


@dataclass(frozen=True)
class Submitted:
    """A job that was handed over."""

    job: str
    folder: Path
    script: Path
    log: Path
    options: Options

    def text(self, runs: Path) -> str:
        """What a person wants to know of it; `runs` is the folder where RUN is looked for."""
        options, name = self.options, word(self.folder, runs)
        size = f"{count(options.size)} process{'' if options.size == 1 else 'es'}"
        rows = [
            ("job", f"{self.job}: {size} on {count(options.nodes)} node{'' if options.nodes == 1 else 's'}"),
            ("run", str(self.folder)),
            ("log", str(self.log)),
            ("follow", f"squall runs show {name}      squeue --job {self.job}      squall runs stop {name}"),
        ]
        return "\n".join(f"{label:<6}  {text}" for label, text in rows)

    def to_json(self) -> str:
        """The same for a program."""
        fields = {"job": self.job, "processes": self.options.size, "nodes": self.options.nodes}
        return json.dumps({**fields, **{name: str(getattr(self, name)) for name in ("folder", "script", "log")}})


def wanted(
    system: System | None,
    *,
    nodes: int | None,
    gpus_per_node: int | None,
    processes: Span | None,
    cpus_per_process: int | None,
    time: str | None,
    partition: str | None,
    sbatch: Sequence[str] | None,
) -> Options | None:
    """The flags as one value; None where no job is asked for.

    Raises:
        InputError: all that is wrong with them.
    """
    own = {
        "--nodes": nodes,
        "--gpus-per-node": gpus_per_node,
        "--cpus-per-process": cpus_per_process,
        "--time": time,
        "--partition": partition,
        "--sbatch": sbatch,
    }
    if system is None:
        if given := [flag for flag, value in own.items() if value]:
            rows = [("rule", "flags of a job"), ("to do", "--submit slurm")]
            raise InputError(f"{', '.join(given)} without --submit", rows)
        return None
    machines = nodes or 1
    mistakes = Mistakes("what the job asks for", "sbatch's own flags: --sbatch KEY=VALUE")
    found = Options(
        nodes=machines,
        processes_per_node=_ranks(machines, gpus_per_node, processes, mistakes),
        gpus_per_node=gpus_per_node or 0,
        cpus_per_process=cpus_per_process,
        time=_minutes(time, mistakes) if time is not None else None,
        partition=partition,
        more=tuple(_pair(text, mistakes) for text in sbatch or ()),
    )
    mistakes.raise_if_any()
    return found


def submit(arguments: Sequence[str], folder: Path, options: Options) -> Submitted:
    """Submits a `squall` command as a job of SLURM.

    Arguments:
        arguments: of squall, without `--out`: ``["train", "digits", "lr=0.2", "--data=/sets"]``.
        folder: of the run; the batch file and the job's log lie in its folder slurm/.
        options: what the job asks for.

    Raises:
        MissingExtraError: submitit is not installed.
        InputError: SLURM is not here, or refuses the job.
    """
    try:
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError
    except ImportError:
        raise MissingExtraError("--submit slurm", "submitit", "slurm") from None
    if missing := [name for name in ("sbatch", "srun") if shutil.which(name) is None]:
        raise InputError(
            "SLURM is not here",
            [("found", f"no {' and no '.join(missing)} in PATH"), ("to do", "log in where jobs are submitted")],
        )
    own = folder / Path(JOB).parent
    try:
        own.mkdir(parents=True, exist_ok=True)
        executor = SlurmExecutor(own)
        executor.update_parameters(**batch.parameters(folder, options))
        # submitit's public way to run a command pickles a function that collects its output till the end
        job = executor._submit_command(batch.script(arguments, folder, options)).job_id
    except (FailedJobError, FailedSubmissionError) as error:
        raise _refused(str(error)) from error
    except OSError as error:
        raise InputError(f"{own} cannot be written", [("found", error.strerror or str(error))]) from error
    finally:
        _sweep(own)
    try:
        write_json(folder / JOB, {"job": job, "submitted": time.time(), "processes": options.size})
    except OSError as error:
        raise InputError(
            f"job {job} is submitted, but squall runs will not know of it",
            [
                ("found", f"{folder / JOB} cannot be written: {error.strerror or error}"),
                ("to do", f"squeue --job {job}, or scancel {job} and submit it again"),
            ],
        ) from error
    return Submitted(job, folder, own / f"{job}_submission.sh", own / f"{job}.log", options)


def _sweep(own: Path) -> None:
    """Takes away submitit's links to batch files, the file that SLURM refused, and a folder with nothing in it."""
    for path in own.glob(".submission_file_*.sh"):
        path.unlink(missing_ok=True)
    with suppress(OSError):
        own.rmdir()


def _ranks(nodes: int, gpus: int | None, processes: Span | None, mistakes: Mistakes) -> int:
    """Processes a node."""
    if processes is None:
        if gpus is None:
            mistakes.add("--processes", "how many? Or --gpus-per-node, with a process each")
        return gpus or 0
    ranks, rest = divmod(processes.most, nodes)
    if processes.is_range:
        mistakes.add(f"--processes {processes}", "a job of SLURM has one number of them")
    elif rest:
        mistakes.add(f"--processes {processes}", f"does not divide among {nodes} nodes")
    elif gpus is not None and ranks > gpus:
        mistakes.add(f"--processes {processes}", f"{ranks} a node, but {gpus} GPUs: one process a GPU")
    return ranks


def _minutes(text: str, mistakes: Mistakes) -> int | str | None:
    """A stretch of time for sbatch."""
    if match := _TIME.fullmatch(text.strip()):
        return max(round(float(match[1]) * _MINUTES[match[2]]), 1)
    if _SLURM_TIME.fullmatch(text.strip()):
        return text.strip()
    mistakes.add(f"--time {text}", "no stretch of time: 90min, 8h, 2d, or as SLURM writes it: 2-12:00:00")
    return None


def _pair(text: str, mistakes: Mistakes) -> tuple[str, str | bool]:
    """KEY=VALUE, or KEY alone for a flag without a value."""
    key, equals, value = text.removeprefix("--").partition("=")
    if own := _OWN.get(key.replace("_", "-")):
        mistakes.add(f"--sbatch {text}", own)
    elif not re.fullmatch(r"[a-z][a-z0-9_-]*", key) or "\n" in value:
        mistakes.add(f"--sbatch {text}", "not of the form KEY=VALUE: account=physics, mem=64G, exclusive")
    return key.replace("_", "-"), value if equals else True


def _refused(said: str) -> SquallError:
    lines = [line for line in said.splitlines() if line.strip()]
    return InputError("SLURM refuses the job", [("it said", "\n".join(lines[-5:]) or "nothing")])
