"""The stage's own process: imports, then forks a runner for each line that comes.

    python -P -m squall.verify.stage OWNER MODULE...

Threads do not survive a fork, and locks that they held stay locked; nor does a GPU's context. So the owner gives this
process an environment in which no import starts a pool of threads, and none asks for a GPU; if one has done so all the
same, the process starts again and leaves the modules to the ranks.
"""

from __future__ import annotations

import gc
import importlib
import json
import math
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from squall.verify.stage import kin
from squall.verify.stage.job import ENDED, Job

_CHUNK = 1 << 20


def main(owner: int, modules: Sequence[str]) -> NoReturn:
    """Serves jobs until the owner has closed the pipe, or is gone."""
    requests, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)  # what modules print as they are imported is no answer
    kin.adopt_orphans()
    from squall.verify.stage.groups import keep_groups  # torch

    keep_groups()  # before others import the function by its name
    for name in ("squall.verify.stage.runner", *modules):
        with suppress(Exception, SystemExit):  # not installed, or broken: the script will say it
            importlib.import_module(name)
    if modules and not _can_be_forked():
        os.dup2(requests, 0)
        os.dup2(answers, 1)
        os.execv(sys.executable, [sys.executable, "-P", "-m", "squall.verify.stage", str(owner)])
    gc.collect()
    gc.freeze()
    _answer(answers, {"ready": True})
    last = b""
    while line := _line(requests, owner):
        _serve(line, requests, answers, owner)
        last = line
    kin.end_all()
    _stand_in(last, owner)
    os._exit(0)


def _can_be_forked() -> bool:
    import torch

    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208
    return threads == 1 and not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]


def _serve(line: bytes, requests: int, answers: int, owner: int) -> None:
    """One job, from its line to its answer; an owner that is gone ends it."""
    me = os.getpid()
    runner = os.fork()
    if runner == 0:
        os.close(requests)
        os.close(answers)
        _run(line, me)
    kin.wait_for_one([runner, owner], math.inf, requests)
    status = dict(kin.reap()).get(runner)
    kin.end_all()  # what a runner that was killed could not end
    if status is None:
        _stand_in(line, owner)
        os._exit(1)
    _answer(answers, {"status": os.waitstatus_to_exitcode(status)})


def _stand_in(line: bytes, owner: int) -> None:
    """Does what the owner would have done after its last job, if it is gone."""
    if line and os.getppid() != owner:
        from squall.verify.stage.rank import function

        job = Job.read(json.loads(line)["job"])
        if job.without_owner is not None:
            function(job.without_owner)(job.folder)


def _run(line: bytes, stage: int) -> NoReturn:
    """The runner's whole life; how the job ended stands in a file of its folder."""
    status = 1
    try:
        from squall.verify.stage.runner import Runner

        os.setsid()
        asked = json.loads(line)
        job = Job.read(asked["job"])
        ended = Runner(job, asked["environ"], asked["directory"], stage).run()
        (job.folder / ENDED).write_text(json.dumps(ended.plain()))
        status = 0
    except BaseException:
        traceback.print_exc()
        kin.end_all()
    finally:
        os._exit(status)


def _line(requests: int, owner: int) -> bytes:
    """The next request; nothing where there will be none. The owner waits for the answer before it writes the next."""
    line = b""
    while not line.endswith(b"\n"):
        kin.wait_for_one([owner], math.inf, requests)
        if os.getppid() != owner or not (chunk := os.read(requests, _CHUNK)):
            return b""
        line += chunk
    return line


def _answer(answers: int, values: dict[str, object]) -> None:
    line = json.dumps(values).encode() + b"\n"
    while line:
        line = line[os.write(answers, line) :]


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
