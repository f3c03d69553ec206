"""What a role sees of the engine that runs it on Ray, without Ray: work, tasks, and what ends a program."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any, cast

import pytest

from squall.cluster.program import Cost, Here, Role
from squall.engine.ray.actor import Boot, Host, _Here
from squall.engine.ray.calls import Calls, Message
from squall.errors import RunError


def lived(body: Callable[[Here], Any]) -> tuple[Any, BaseException | None]:
    """What a body gives that runs as a role would, and the error that would end the program."""

    async def run() -> tuple[Any, BaseException | None]:
        host = Host("replica-0", Boot("", 0.0, 0.0, None, False))
        here = _Here(host, cast(Any, None), host._boot)
        try:
            return await body(cast(Here, here)), host._error
        finally:
            for pool in (here._compute, here._beside, host._transfers):
                pool.shutdown()

    return asyncio.run(run())


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["compute", "small", "beside"])
def test_work_that_would_end_the_process_is_an_error(where: str, error: BaseException) -> None:
    def work() -> None:
        raise error

    async def body(here: Here) -> str:
        with pytest.raises(RunError, match=f"replica-0 failed: {type(error).__name__}"):
            await {
                "compute": lambda: here.compute(work),
                "small": lambda: here.compute(work, Cost(bytes=1)),
                "beside": lambda: here.beside(work),
            }[where]()
        return await here.compute(lambda: "goes on")

    assert lived(body) == ("goes on", None)


def test_a_role_that_would_end_the_process_is_an_error() -> None:
    class Serving(Role):
        async def leave(self) -> None:
            sys.exit(3)

        async def asked(self, word: str, value: Any) -> None:
            sys.exit(4)

    def run(call: Callable[[Host], Any]) -> tuple[Any, BaseException | None]:
        async def called() -> tuple[Any, BaseException | None]:
            host = Host("shard-0", Boot("", 0.0, 0.0, None, False))
            host._role, host._callers = Serving(), cast(Any, _NoTensors())
            host._opened.set()
            try:
                return await call(host), host._error
            finally:
                host._transfers.shutdown()

        return asyncio.run(called())

    answer, error = run(lambda host: host.serve(Message("", 0, "leave", (), None, None, 1.0)))
    assert isinstance(answer, Calls.Raised)
    assert "shard-0 failed: SystemExit: 3" in str(answer.error)
    assert isinstance(error, SystemExit)
    _, error = run(lambda host: host.ask("stop", ""))
    assert isinstance(error, SystemExit)


class _NoTensors:
    def tensors(self, message: Message) -> Any:
        return self

    async def __aenter__(self) -> dict[str, Any]:
        return {}

    async def __aexit__(self, *_: object) -> None: ...


async def _fails() -> None:
    raise RunError("nobody looks")


def test_first_of_awaits_nothing() -> None:
    async def body(here: Here) -> bool:
        task = here.start(_fails())
        await here.first_of(task, within=5.0)
        return task.done

    done, error = lived(body)
    assert done
    assert "nobody looks" in str(error)


def test_an_awaited_task_ends_nothing() -> None:
    async def body(here: Here) -> str:
        with pytest.raises(RunError, match="nobody looks"):
            await here.start(_fails())
        return "went on"

    assert lived(body) == ("went on", None)


def test_first_of_nothing_is_refused() -> None:
    async def body(here: Here) -> None:
        with pytest.raises(ValueError, match="nothing to wait for"):
            await here.first_of()
        await here.first_of(within=0.0)

    assert lived(body) == (None, None)
