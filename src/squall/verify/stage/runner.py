"""One job: its ranks are forked, watched and ended, and nothing of them stays.

::

    forked by the stage ─> socket ─> fork rank 0 .. P-1 ─> the store serves ─> ranks end ─> report
                                                             │
                       a rank has failed, grace_s later      ├─> where are you? ─> SIGKILL to it and all below it
                       limit_s after the start               ┘
                       the stage is gone                     ──> SIGKILL to all below, at once

The store's thread starts after the last fork, so that no process is ever forked beside a thread.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from squall.cluster.place import LOOPBACK
from squall.cluster.world import listener, open_store
from squall.verify.stage import kin
from squall.verify.stage import rank as ranks
from squall.verify.stage.job import Ended, Failure, Job, RankEnd
from squall.verify.stage.stacks import last_stack

_ANSWER_S = 1.0  # to write a stack
_DEATH_S = 3.0  # to be gone after SIGKILL
_LOADERS_S = 1.0  # to end by themselves after their rank
_STORE_S = 30.0  # beyond the limit: the store gives up last
_TAIL_BYTES = 64 * 1024
_TAIL_LINES = 20


class Runner:
    """The state of one job.

    Arguments:
        job: what is run.
        given: the environment of the owner.
        directory: in which the owner is.
        stage: the process that this one was forked by.
    """

    def __init__(self, job: Job, given: Mapping[str, str], directory: str, stage: int) -> None:
        self._job, self._given, self._directory, self._stage = job, given, directory, stage
        self._running: dict[int, int] = {}  # process -> rank
        self._codes: dict[int, int] = {}  # rank -> exit status, or minus the signal, in the order in which they ended
        self._at: dict[int, float] = {}
        self._told: set[int] = set()  # ranks that were ended by us
        self._theirs: set[int] = set()  # what these had started, and was ended with them

    def run(self) -> Ended:
        """Runs the job to its end."""
        kin.adopt_orphans()
        server = listener()
        begin = time.monotonic()
        self._fork(server)
        store = open_store(server, timedelta(seconds=self._job.limit_s + _STORE_S))
        out_of_time = self._watch(begin + self._job.limit_s)
        seconds = time.monotonic() - begin
        left = [pid for pid in kin.wait_for_all(_LOADERS_S) if pid not in self._theirs]
        left_behind = tuple((pid, kin.command(pid)) for pid in left)
        kin.end_all()
        del store
        told = {rank: self._said(rank) for rank in range(self._job.processes)}
        ends = tuple(self._end_of(rank, error) for rank, (_, error) in told.items())
        failed = [end.rank for end in ends if end.failed]
        return Ended(
            ranks=ends,
            seconds=seconds,
            out_of_time=out_of_time,
            first_failed=min(failed, key=lambda rank: told[rank][0], default=None),
            left_behind=left_behind,
        )

    def _fork(self, server: socket.socket) -> None:
        me = os.getpid()
        common = environment(self._job, server.getsockname()[1])
        for rank in range(self._job.processes):
            own = dict.fromkeys(("RANK", "LOCAL_RANK", "ROLE_RANK"), str(rank))
            own |= {"TORCHELASTIC_ERROR_FILE": str(self._job.folder / f"rank-{rank}.torch.json")}
            said = {**_DEFAULTS, **self._given, **common, **own, **self._job.environment}
            told = {name: value for name, value in said.items() if value is not None}
            pid = os.fork()
            if pid == 0:
                server.close()
                ranks.be_rank(rank, self._job, told, self._directory, me)
            self._running[pid] = rank

    def _watch(self, limit: float) -> bool:
        """Returns when no rank runs any more; says whether the limit ended some."""
        until = limit
        while self._running:
            kin.wait_for_one([*self._running, self._stage], until)
            if os.getppid() != self._stage:
                kin.end_all()
                os._exit(1)
            self._collect()
            now = time.monotonic()
            if any(self._codes.values()):
                until = min(until, min(at for rank, at in self._at.items() if self._codes[rank]) + self._job.grace_s)
            if self._running and now >= until:
                self._end()
                return now >= limit
        return False

    def _collect(self) -> None:
        for pid, status in kin.reap():
            if pid in self._running:
                rank = self._running.pop(pid)
                self._codes[rank] = os.waitstatus_to_exitcode(status)
                self._at[rank] = time.monotonic()

    def _end(self) -> None:
        """Asks the ranks that run where they are, and kills them with all that they have started."""
        self._told = set(self._running.values())
        self._theirs = {pid for each in self._running for pid in kin.below(each)}
        for number, patience_s in ((ranks.WHERE, _ANSWER_S), (signal.SIGKILL, _DEATH_S)):
            kin.send(self._running, number)
            until = time.monotonic() + patience_s
            while self._running and time.monotonic() < until:
                kin.wait_for_one(self._running, until)
                self._collect()
        for rank in self._running.values():  # not even SIGKILL: it hangs in the kernel
            self._codes[rank], self._at[rank] = -signal.SIGKILL, time.monotonic()
        self._running.clear()
        mine = self._theirs.intersection(kin.below(os.getpid()))
        kin.send([pid for pid in mine if not kin.is_tracker(pid)], signal.SIGKILL)

    def _said(self, rank: int) -> tuple[float, Failure | None]:
        """When a rank failed, or ended, and the exception that it has reported."""
        path = ranks.error_file(self._job.folder, rank)
        if not path.exists():
            return self._at[rank], None
        values: dict[str, Any] = json.loads(path.read_text())
        return values["at"], values["failure"]

    def _end_of(self, rank: int, error: Failure | None) -> RankEnd:
        code = self._codes[rank]
        stack = ranks.stack_file(self._job.folder, rank)
        return RankEnd(
            rank=rank,
            status=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            ended_by_us=rank in self._told and code in (-ranks.WHERE, -signal.SIGKILL),
            error=error,
            stack=last_stack(stack, ranks.__file__) if code < 0 and stack.exists() else [],
            last_lines=self._tail(rank),
        )

    def _tail(self, rank: int) -> list[str]:
        path = self._job.folder / f"rank-{rank}.err"
        if not path.exists():
            return []
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - _TAIL_BYTES, 0))
            return file.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]


_DEFAULTS = {
    "OMP_NUM_THREADS": "1",  # as torchrun's
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    **dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME"), "lo"),  # nobody else can join
}
"""What ranks are told where their owner's environment says nothing."""


def environment(job: Job, port: int) -> dict[str, str]:
    """What all ranks are told, in torchrun's words."""
    values = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE", "ROLE_WORLD_SIZE"), str(job.processes))
    values |= {"GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1", "ROLE_NAME": "default"}
    values |= {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(port)}
    values |= {"TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_MAX_RESTARTS": "0"}
    values |= {"TORCHELASTIC_RUN_ID": f"squall-{os.getpid()}", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    return values | {"TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT"}
