"""The batch file of a job of SLURM that saves, leaves its place when it must, and comes again.

What SLURM does to a job, and what the script makes of it (as slurmctld, slurmd and srun do it in release 26.11)::

    time is almost over    USR1 to the ranks alone     they save and leave     scontrol requeue
    preempted, with grace  TERM to the ranks alone     they save and leave     scontrol requeue
    preempted, without     TERM to all, twice          they save and leave     SLURM queues it again by itself
    scancel                TERM to all, once           they save and leave     nothing: asked back, it would rise again
    squall runs stop       .job is taken away          they save and leave     nothing

So the script takes TERM as the word that SLURM ends the job itself, and waits for srun: if it left first, SLURM would
end the ranks in the middle of a save. `--kill-on-bad-exit` would do so too, since one rank always leaves first. The
file .job in the run's folder says that the job works on it, or comes again to; `squall runs stop` takes it away.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from squall.cli.states import JOB, LIVE_JOB

SIGNAL = "USR1@180"
"""Sent to the ranks so many seconds before the time is over: a step and a save must fit in."""

SCRIPT = """\
mkdir -p "$out"
echo "$SLURM_JOB_ID" >"$out/{live}"
trap 'rm -f "$out/{live}"; rmdir "$out" 2>/dev/null' EXIT

ending=
trap 'ending=yes' TERM
trap : USR1
srun --kill-on-bad-exit=0 --wait=300 ${{SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK}} \\
  {command} --out "$out"
status=$?

case $status in
130 | 138 | 143) ;;
*) exit "$status" ;;
esac
if [ ! -e "$out/{live}" ]; then
  echo "squall runs stop ended the run: the job does not come again"
elif [ -n "$ending" ]; then
  echo "SLURM ends the job: it comes again if it was preempted, not if it was cancelled"
elif [ "${{SLURM_RESTART_COUNT:-0}}" -ge "$most" ]; then
  echo "the job came $SLURM_RESTART_COUNT times again: not once more"
elif scontrol requeue "$SLURM_JOB_ID"; then
  echo "the run left its place: job $SLURM_JOB_ID comes again and goes on"
  trap - EXIT
  exit 0
fi
exit "$status"
"""
"""What the job runs once it has its folder in `out` and the most restarts in `most`; a template of str.format."""

MOST_RESTARTS = 100  # a job whose time is too short to come to its first checkpoint must not run for ever


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a job asks of SLURM.

    Attributes:
        nodes: machines.
        processes_per_node: ranks on each.
        gpus_per_node: 0: none.
        cpus_per_process: None: SLURM's default.
        time: at a stretch, in minutes or as SLURM writes it; None: the partition's.
        partition: None: SLURM's default.
        more: further flags of sbatch by name.
    """

    nodes: int
    processes_per_node: int
    gpus_per_node: int = 0
    cpus_per_process: int | None = None
    time: int | str | None = None
    partition: str | None = None
    more: tuple[tuple[str, str | bool], ...] = ()

    @property
    def size(self) -> int:
        """Ranks of the job."""
        return self.nodes * self.processes_per_node


def comes_again(environ: Mapping[str, str]) -> bool:
    """Whether srun started this process: its job may have come again, so that a run in its folder is its own."""
    return "SLURM_STEP_ID" in environ


def parameters(folder: Path, options: Options) -> dict[str, Any]:
    """What submitit writes as flags of sbatch."""
    given = {
        "nodes": options.nodes,
        "ntasks_per_node": options.processes_per_node,
        "gpus_per_node": options.gpus_per_node or None,
        "cpus_per_task": options.cpus_per_process,
        "partition": options.partition,
    }
    more: dict[str, Any] = {
        "job-name": folder.name,  # here, where --sbatch job-name=x takes its place
        "signal": SIGNAL,
        "requeue": True,
        "output": f"{(folder / JOB).parent.absolute()}/%j.log",
    }
    if options.time is not None:
        more["time"] = options.time  # a number, or SLURM's own form, which submitit takes only here
    return {
        **given,
        "time": None,  # not submitit's five minutes
        "job_name": None,
        "wckey": None,
        "stderr_to_stdout": True,
        "use_srun": False,
        "additional_parameters": {**more, **dict(options.more)},
    }


def script(arguments: Sequence[str], folder: Path, options: Options) -> str:
    """The lines of the batch file below its flags."""
    # a step of one task is no job of several: it would start as many processes as there are cores
    alone = ["--processes=1"] if options.size == 1 else []
    command = shlex.join([sys.executable, "-m", "squall", *arguments, *alone])
    head = f"out={shlex.quote(str(folder))}\nmost={MOST_RESTARTS}\n\n"
    return head + SCRIPT.format(command=command, live=LIVE_JOB)
