"""The owner's side of a stage: starts its process, hands it jobs, and ends it with all that is below it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from squall.errors import RunError
from squall.verify.stage.job import ENDED, Ended, Job

_QUIET = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),  # no pools of threads
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # "is there a GPU?" without a context, which would not survive a fork
}
_LOG_LEVEL = "TORCH_CPP_LOG_LEVEL"
_IMPORTS_S = 300.0
_ENDING_S = 30.0  # beyond a job's limit, and until a stage that was let go must be gone
_CHUNK = 1 << 20


class Stage:
    """A context in which jobs are run, one at a time.

    The imports go on while the caller does other things: only the first job waits for them.

    Arguments:
        modules: imported once, beside torch; one that is not installed is ignored. Their imports must start no threads.

    Example:
        >>> with Stage(["lightning"]) as stage:                                             # doctest: +SKIP
        ...     ended = stage.run(Job(main="package.module:function", processes=2, folder=folder, limit_s=60.0))
    """

    def __init__(self, modules: Sequence[str] = ()) -> None:
        self._modules = list(modules)
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._unread = b""
        self._ready = False

    def __enter__(self) -> Stage:
        self._errors = tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __package__ or "", str(os.getpid()), *self._modules],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                bufsize=0,
                env={_LOG_LEVEL: "FATAL", **os.environ, **_QUIET},
                start_new_session=True,  # Ctrl-C is the owner's to act on
            )
        except BaseException:
            self._errors.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        process, errors = self._process, self._errors
        if process is None or errors is None:
            return
        self._process = self._errors = None
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(OSError):
            process.stdin.close()  # the stage ends what runs, and itself
        try:
            process.wait(_ENDING_S)
        except BaseException:
            process.kill()  # its runner sees it
            process.wait()
            raise
        finally:
            process.stdout.close()
            errors.close()

    def run(self, job: Job) -> Ended:
        """Runs a job to its end, or to its limit.

        The ranks get this process's environment and working folder as they are now. If this is left by an exception,
        as KeyboardInterrupt, the stage ends with all its ranks.

        Raises:
            RunError: the stage died, or was never entered.
        """
        if self._process is None:
            raise RunError("no stage to run a job on", [("rule", "with Stage() as stage: stage.run(job)")])
        request = {"job": job.plain(), "environ": dict(os.environ), "directory": str(Path.cwd())}
        line = json.dumps(request).encode() + b"\n"
        try:
            if not self._ready:
                self._answer(_IMPORTS_S)
                self._ready = True
            self._send(line)
            answer = self._answer(job.limit_s + _ENDING_S)
        except BaseException:
            self.__exit__()
            raise
        if answer["status"]:  # a script has killed its parent: all that it had is gone, and the stage can go on
            raise self._died(f"the process that watches the ranks ended with status {answer['status']}")
        return Ended.read(json.loads((job.folder / ENDED).read_text()))

    def _send(self, line: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            while line:
                line = line[os.write(self._process.stdin.fileno(), line) :]
        except BrokenPipeError:
            raise self._died("it reads no more") from None

    def _answer(self, patience_s: float) -> dict[str, Any]:
        """The next line that the stage says."""
        assert self._process is not None
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        end = time.monotonic() + patience_s
        while b"\n" not in self._unread:
            if not poll.poll(max(end - time.monotonic(), 0.0) * 1000.0):
                raise self._died(f"no answer within {patience_s:g} s")
            chunk = os.read(fd, _CHUNK)
            if not chunk:
                raise self._died(f"exit status {self._process.wait()}")
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            raise self._died("half an answer") from None
        return answer

    def _died(self, found: str) -> RunError:
        assert self._errors is not None
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        rows = [("found", found), *([("it said", "\n".join(said[-10:]))] if said else [])]
        return RunError("the process that starts the ranks could not go on", rows)
