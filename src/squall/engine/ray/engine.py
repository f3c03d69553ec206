"""The Ray engine: every role an actor in a process of its own, on this machine or on a cluster.

The driver makes the actors, asks each to live, and hears from that one call when a role ends, fails or dies: a role
that its plan restarts is made again by Ray, in the same actor, and asked again. What the chief says comes as news that
the driver fetches; roles that it enlists or dismisses are made and ended here::

    ray.wait(lives of all roles, news of the chief; 0.2 s) --> ended?  failed?  died?  said?   asked?
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from squall.cluster.program import Plan, Program
from squall.engine.ray.actor import Boot, Enlisted, Host
from squall.engine.ray.calls import Calls
from squall.engine.ray.cluster import Cluster
from squall.errors import RunError
from squall.records import Record

_LOOK_S = 0.2
_NEWS_S = 5.0
_DEATHS, _WITHIN_S = 5, 60.0
"""A role that dies so often within so many seconds will not get better."""
_CALLS_AT_ONCE = 1000


@dataclass
class _Life:
    """A role as the driver knows it."""

    plan: Plan
    actor: Any
    reference: Any
    deaths: list[float] = field(default_factory=list)


class OnRay:
    """Runs programs on a Ray cluster.

    Arguments:
        cluster: that this process is the driver of.
        logs: folder for what roles write to their standard output and error; None: it is lost.
        began: seconds of the run at which this program begins.
        threads: of torch in each role.
    """

    def __init__(self, cluster: Cluster, logs: Path | None = None, began: float = 0.0, threads: int = 1) -> None:
        import ray

        self._ray, self._cluster, self._logs = ray, cluster, logs
        self._boot = Boot(
            cluster.namespace, began, time.time(), str(logs.absolute()) if logs else None, cluster.tls, threads
        )
        self._lives: dict[str, _Life] = {}
        self._actor = ray.remote(Host)

    def run(
        self,
        program: Program,
        sink: Callable[[Record], None],
        asked: Callable[[], Sequence[tuple[str, Any]]] = tuple,
    ) -> Any:
        """Runs a program to its end; see `squall.cluster.program.Engine`.

        Raises:
            InputError: too few processors for the roles.
        """
        plans = program.roles.values()
        kinds = [plan.kind for plan in plans]
        what = ", ".join(f"{kinds.count(kind)} {kind}{'s' * (kinds.count(kind) > 1)}" for kind in dict.fromkeys(kinds))
        self._cluster.require(sum(plan.cpus for plan in plans), sum(plan.gpus for plan in plans), what)
        try:
            for name, plan in program.roles.items():
                self._make(name, plan)
            return self._followed(program.chief, sink, asked)
        finally:
            for life in self._lives.values():
                self._ray.kill(life.actor)
            self._lives = {}

    def pids(self) -> dict[str, int]:
        """The process of each role that is alive: for tests that kill them."""
        found = {}
        for name, life in self._lives.items():
            state = self._ray.get(life.actor.pid.remote(), timeout=30)
            found[name] = int(state)
        return found

    def _followed(
        self, chief: str, sink: Callable[[Record], None], asked: Callable[[], Sequence[tuple[str, Any]]]
    ) -> Any:
        heard, news = 0, self._lives[chief].actor.news.remote(0, _NEWS_S)
        while True:
            lives = {life.reference: name for name, life in self._lives.items() if life.reference is not None}
            done, _ = self._ray.wait([*lives, news], num_returns=1, timeout=_LOOK_S)
            for reference in done:
                if reference is news:
                    said = self._got(chief, news)
                    heard += len(said)
                    self._hear(said, sink)
                    news = self._lives[chief].actor.news.remote(heard, _NEWS_S)
                    continue
                name = lives[reference]
                if name not in self._lives:
                    continue  # dismissed meanwhile
                ended, value = self._ended(name, reference, chief)
                if ended and name == chief:
                    self._hear(self._got(chief, self._lives[chief].actor.news.remote(heard, 0.0)), sink)
                    return value
            for word, value in asked():
                self._lives[chief].actor.ask.remote(word, value)

    def _ended(self, name: str, reference: Any, chief: str) -> tuple[bool, Any]:
        """What became of a role whose `live` came to an end: over, with its value, or made again.

        Raises:
            SquallError: what it raised.
            RunError: it died, and is not made again.
        """
        life = self._lives[name]
        try:
            value = self._ray.get(reference)
        except self._ray.exceptions.RayActorError as error:
            self._died(name, life, chief, error)
            return False, None
        if isinstance(value, Calls.Raised):
            raise value.error
        life.reference = None
        return True, value

    def _died(self, name: str, life: _Life, chief: str, error: BaseException) -> None:
        now = time.monotonic()
        life.deaths = [*(at for at in life.deaths if now - at < _WITHIN_S), now]
        if name == chief or not life.plan.restarts:
            raise RunError(f"the role {name} died", [("found", _reason(error)), *self._last_words(name)]) from None
        if len(life.deaths) > _DEATHS:
            raise RunError(
                f"the role {name} died {len(life.deaths)} times within {_WITHIN_S:.0f} s",
                [("found", _reason(error)), *self._last_words(name)],
            ) from None
        life.reference = life.actor.live.remote()

    def _make(self, name: str, plan: Plan) -> None:
        options: dict[str, Any] = {
            "name": name,
            "namespace": self._cluster.namespace,
            "num_cpus": plan.cpus,
            "num_gpus": plan.gpus,
            "max_restarts": -1 if plan.restarts else 0,
            "max_concurrency": _CALLS_AT_ONCE,
            "scheduling_strategy": self._placed(plan),
        }
        actor: Any = self._actor.options(**options).remote(name, plan, self._boot)
        self._lives[name] = _Life(plan, actor, actor.live.remote())

    def _placed(self, plan: Plan) -> Any:
        if not plan.beside_driver:
            return "SPREAD"
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(self._cluster.node_id, soft=False)

    def _hear(self, said: Sequence[Record | Enlisted], sink: Callable[[Record], None]) -> None:
        for news in said:
            if isinstance(news, Record):
                sink(news)
            elif news.plan is not None and news.name not in self._lives:
                self._make(news.name, news.plan)
            elif news.plan is None and news.name in self._lives:
                self._ray.kill(self._lives.pop(news.name).actor)

    def _got(self, chief: str, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayActorError as error:
            raise RunError(f"the role {chief} died", [("found", _reason(error)), *self._last_words(chief)]) from None

    def _last_words(self, name: str) -> list[tuple[str, str]]:
        """The end of what a role wrote."""
        if self._logs is None:
            return []
        path = self._logs / f"{name}.log"
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
        except OSError:
            return []
        return [("last lines", "\n".join(lines))] if lines else []


def _reason(error: BaseException) -> str:
    """What Ray says of a death, in a line."""
    for line in str(error).splitlines():
        if "died" in line or "killed" in line or "exit" in line.lower():
            return line.strip()
    return type(error).__name__
