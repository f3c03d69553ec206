"""Finds out from the environment which rank of which job this process is. No torch, no sockets: a pure function.

Three ways lead here, and the first that applies wins: RANK and WORLD_SIZE (our launcher, torchrun, Kubernetes
operators), SLURM's variables (a process started by srun), or neither: alone. An environment that says half of it is an
error that lists what is missing; guessing would end in a wait for ranks that do not exist.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass

from squall.errors import Mistakes

LOOPBACK = "127.0.0.1"

_TORCH = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LOCAL = ("LOCAL_RANK", "LOCAL_WORLD_SIZE")
_SLURM_PORTS = range(20000, 40000)


@dataclass(frozen=True)
class Place:
    """One process of a job.

    Arguments:
        rank: its number, 0 to size - 1.
        size: processes of the job.
        local_rank: its number on its machine.
        local_size: processes on its machine.
        node: name of its machine within the job, the same for all processes there.
        master: host and port of the store through which the ranks find each other; None where there is one rank.
        agent_store: the launcher holds that store (else rank 0 opens it).
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    node: str = "0"
    master: tuple[str, int] | None = None
    agent_store: bool = False

    @property
    def one_machine(self) -> bool:
        """All ranks run on this machine: nothing needs to listen beyond loopback."""
        return self.local_size == self.size


def find(environ: Mapping[str, str]) -> Place:
    """Reads this process's place from its environment.

    Raises:
        InputError: the environment is incomplete or contradicts itself; all that is wrong with it at once.
    """
    if any(environ.get(name) for name in ("RANK", "WORLD_SIZE", *_LOCAL)):
        return _checked(_from_torch(environ))
    # only srun sets the step's variables; in a batch script's own shell there are no other ranks to wait for
    if int(environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1:
        return _checked(_from_slurm(environ))
    return Place()


def _from_torch(environ: Mapping[str, str]) -> Place:
    mistakes = Mistakes("the environment of this rank", "start it by torchrun, srun or squall train --processes P")
    values = _integers(environ, [*_TORCH, *_LOCAL], mistakes)
    for name in _TORCH:
        if not environ.get(name):
            given = ", ".join(key for key in (*_TORCH, *_LOCAL) if environ.get(key))
            mistakes.add(name, f"not set, but {given}: all of {', '.join(_TORCH)} are needed")
    host = environ.get("MASTER_ADDR", "")
    if not all(environ.get(name) for name in _LOCAL):
        missing = next(name for name in _LOCAL if not environ.get(name))
        if any(environ.get(name) for name in _LOCAL):
            mistakes.add(missing, f"not set, but {next(n for n in _LOCAL if n != missing)}: both are needed")
        elif host and not is_loopback(host) and values.get("WORLD_SIZE") != 1:
            mistakes.add(missing, f"not set: MASTER_ADDR={host} may be another machine, so ranks cannot be placed")
    mistakes.raise_if_any()
    local_size = values.get("LOCAL_WORLD_SIZE", values["WORLD_SIZE"])
    return Place(
        rank=values["RANK"],
        size=values["WORLD_SIZE"],
        local_rank=values.get("LOCAL_RANK", values["RANK"]),
        local_size=local_size,
        node=environ.get("GROUP_RANK") or str(values["RANK"] // max(local_size, 1)),
        master=(host, values["MASTER_PORT"]),
        agent_store=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def _from_slurm(environ: Mapping[str, str]) -> Place:
    mistakes = Mistakes("the environment that srun gave this rank", "see: srun env | grep SLURM")
    names = ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_JOB_ID"]
    values = _integers(environ, [*names, "SLURM_STEP_ID", "MASTER_PORT"], mistakes)
    per_node = environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    nodes = environ.get("SLURM_STEP_NODELIST", "")
    for name in [*names, "SLURM_STEP_TASKS_PER_NODE", "SLURM_STEP_NODELIST"]:
        if not environ.get(name):
            mistakes.add(name, "not set")
    counts = tasks_per_node(per_node) if per_node else []
    if per_node and not counts:
        mistakes.add(f"SLURM_STEP_TASKS_PER_NODE={per_node}", 'not of the form "4(x2),3"')
    elif counts and "SLURM_NODEID" in values and not 0 <= values["SLURM_NODEID"] < len(counts):
        mistakes.add(f"SLURM_NODEID={values['SLURM_NODEID']}", f"outside the {len(counts)} nodes of {per_node}")
    mistakes.raise_if_any()
    local_size, size = counts[values["SLURM_NODEID"]], values["SLURM_STEP_NUM_TASKS"]
    job = values["SLURM_JOB_ID"] + 7919 * values.get("SLURM_STEP_ID", 0)  # steps of one job may run side by side
    host = LOOPBACK if local_size == size else environ.get("MASTER_ADDR") or first_host(nodes)
    return Place(
        rank=values["SLURM_PROCID"],
        size=size,
        local_rank=values["SLURM_LOCALID"],
        local_size=local_size,
        node=str(values["SLURM_NODEID"]),
        master=(host, values.get("MASTER_PORT", _SLURM_PORTS[job % len(_SLURM_PORTS)])),
    )


def tasks_per_node(text: str) -> list[int]:
    """SLURM's run-length list: ``"2(x3),1"`` -> [2, 2, 2, 1]; [] if it is none."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if not match:
            return []
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def first_host(nodes: str) -> str:
    """The first name of SLURM's compressed list: ``"gpu[003-007,9],cpu1"`` -> ``"gpu003"``."""
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^,]*))?", nodes)
    return f"{match[1]}{match[2] or ''}{match[3] or ''}" if match else nodes


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine by itself; a name is not looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _integers(environ: Mapping[str, str], names: list[str], mistakes: Mistakes) -> dict[str, int]:
    values: dict[str, int] = {}
    for name in names:
        text = environ.get(name)
        if text and name != "MASTER_ADDR":
            if re.fullmatch(r"\d+", text):
                values[name] = int(text)
            else:
                mistakes.add(f"{name}={text}", "not a whole number from 0")
    return values


def _checked(place: Place) -> Place:
    mistakes = Mistakes("the environment of this rank")
    if place.rank >= place.size:
        mistakes.add(f"rank {place.rank}", f"outside a job of {place.size} processes (0 to {place.size - 1})")
    if place.local_rank >= place.local_size:
        mistakes.add(f"local rank {place.local_rank}", f"outside the {place.local_size} processes of this machine")
    if place.local_size > place.size:
        mistakes.add(f"{place.local_size} processes on this machine", f"more than the job's {place.size}")
    if place.master and not 0 < place.master[1] < 2**16:
        mistakes.add(f"port {place.master[1]}", "outside 1 to 65535")
    mistakes.raise_if_any()
    return place
