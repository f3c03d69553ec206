"""The Ray engine: every role an actor in a process of its own, on this machine or on a cluster.

The driver makes the actors, asks each to live, and hears from that one call when a role ends, fails or dies: a role
that its plan restarts is made again by Ray, in the same actor, and asked again. What the chief says comes as news that
the driver fetches; roles that it enlists or dismisses are made and ended here::

    ray.wait(lives of all roles, news of the chief; 0.2 s) --> ended?  failed?  died?  said?   asked?

A role that takes its time is not waited for: what is built here knows deaths, and nothing else of how roles fare.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from squall.cluster.program import Plan, Program
from squall.engine.ray.actor import Boot, Enlisted, Host
from squall.engine.ray.calls import Calls
from squall.engine.ray.cluster import Cluster
from squall.engine.ray.sealed import seal
from squall.errors import RunError
from squall.records import Record

_LOOK_S = 0.2
_NEWS_S = 5.0
_CALLS_AT_ONCE = 1000

_DEATHS, _EARLY_S = 5, 10.0
"""A role that dies so often in a row, each time within so many seconds of having begun, will not get better."""

_FREES_S = 10.0
"""Until the name of a role that was ended can be used again."""

_LAST_LINES = 8


@dataclass
class _Life:
    """A role as the driver knows it.

    Attributes:
        content: how it is made, in Ray's memory.
        living: the call that ends with the role; None: its `main` is over.
        opening: the call that ends when it has begun; None: it has.
        began: when it had begun; None: it has not.
        deaths: in a row, each early.
    """

    plan: Plan
    content: Any
    actor: Any
    living: Any
    opening: Any
    began: float | None = None
    deaths: int = 0


class OnRay:
    """Runs programs on a Ray cluster.

    Arguments:
        cluster: that this process is the driver of.
        logs: folder for what roles write to their standard output and error; None: it is lost.
        began: seconds of the run at which this program begins.
        threads: of torch in each role.
        by_value: modules that the roles' processes cannot import; see `sealed`.
        own: the cluster is there for this program alone: its processors are not counted, and roles may join.
    """

    def __init__(
        self,
        cluster: Cluster,
        logs: Path | None = None,
        began: float = 0.0,
        threads: int = 1,
        by_value: Sequence[ModuleType] = (),
        *,
        own: bool = False,
    ) -> None:
        import ray

        self._ray, self._cluster, self._logs, self._by_value, self._own = ray, cluster, logs, by_value, own
        paths = tuple(str(Path(path).absolute()) for path in sys.path)
        where = str(logs.absolute()) if logs else None
        self._boot = Boot(cluster.namespace, began, time.time(), where, cluster.tls, threads, paths)
        self._lives: dict[str, _Life] = {}
        self._incarnations: dict[str, int] = {}
        self._sealed: dict[int, tuple[Plan, Any]] = {}
        self._later: dict[str, Plan] = {}
        self._host = ray.remote(Host)

    def run(
        self,
        program: Program,
        sink: Callable[[Record], None],
        asked: Callable[[], Sequence[tuple[str, Any]]] = tuple,
    ) -> Any:
        """Runs a program to its end; see `squall.cluster.program.Engine`.

        Raises:
            InputError: too few processors for the roles; something in a plan cannot be sent.
        """
        plans = program.roles.values()
        kinds = [plan.kind for plan in plans]
        what = ", ".join(f"{kinds.count(kind)} {kind}{'s' * (kinds.count(kind) > 1)}" for kind in dict.fromkeys(kinds))
        cpus = 0.0 if self._own else sum(plan.cpus for plan in plans)
        self._cluster.require(cpus, sum(plan.gpus for plan in plans), what)
        try:
            for name, plan in program.roles.items():
                if plan.urgent:
                    self._make(name, plan)
            self._later = {name: plan for name, plan in program.roles.items() if not plan.urgent}
            return self._followed(program.chief, sink, asked)
        finally:
            for life in self._lives.values():
                self._kill(life)
            self._lives = {}

    # -- what happens -----------------------------------------------------------------------------------------

    def _followed(
        self, chief: str, sink: Callable[[Record], None], asked: Callable[[], Sequence[tuple[str, Any]]]
    ) -> Any:
        heard, news = 0, self._lives[chief].actor.news.remote(0, _NEWS_S)
        while True:
            living = {life.living: name for name, life in self._lives.items() if life.living is not None}
            opening = {life.opening: name for name, life in self._lives.items() if life.opening is not None}
            done, _ = self._ray.wait([*living, *opening, news], num_returns=1, timeout=_LOOK_S)
            for reference in done:
                if reference is news:
                    said = self._got(chief, news)
                    heard += len(said)
                    self._hear(said, sink)
                    news = self._lives[chief].actor.news.remote(heard, _NEWS_S)
                elif reference in opening:
                    self._note_begun(opening[reference], reference)
                elif self._ended(living[reference], reference, chief):
                    last = self._got(chief, self._lives[chief].actor.news.remote(heard, 0.0))
                    self._hear(last, sink)
                    return self._ray.get(reference)
            for word, value in asked():
                self._lives[chief].actor.ask.remote(word, value)
            if self._later and all(life.opening is None for life in self._lives.values()):
                for name, plan in self._later.items():
                    self._make(name, plan)
                self._later = {}

    def _note_begun(self, name: str, reference: Any) -> None:
        life = self._lives.get(name)
        if life is None or life.opening is not reference:
            return  # dismissed meanwhile, or made again
        life.opening = None
        with suppress(self._ray.exceptions.RayActorError):  # it died: `living` says so, too
            self._ray.get(reference)
            life.began = time.monotonic()

    def _ended(self, name: str, reference: Any, chief: str) -> bool:
        """Looks at a role whose life came to an end; whether it is the chief, and the program is over.

        Raises:
            SquallError: what it raised.
            RunError: it died, and is not made again.
        """
        life = self._lives.get(name)
        if life is None:
            return False  # dismissed meanwhile
        try:
            value = self._ray.get(reference)
        except self._ray.exceptions.RayActorError as error:
            self._died(name, life, error, name == chief)
            return False
        if isinstance(value, Calls.Raised):
            raise value.error
        life.living = None
        return name == chief

    def _died(self, name: str, life: _Life, error: BaseException, is_chief: bool) -> None:
        found = [("found", _reason(error)), *self._last_words(name)]
        if is_chief or not life.plan.restarts:
            raise RunError(f"the role {name} died", found) from None
        early = life.began is None or time.monotonic() - life.began < _EARLY_S
        life.deaths = life.deaths + 1 if early else 1
        if life.deaths >= _DEATHS:
            rule = (
                f"a role that dies is started again, but not if it dies {_DEATHS} times in a row, soon after it began"
            )
            raise RunError(f"the role {name} dies again and again", [*found, ("rule", rule)]) from None
        life.began = None
        life.living, life.opening = self._alive(name, life.actor, life.content)

    def _hear(self, said: Sequence[Record | Enlisted], sink: Callable[[Record], None]) -> None:
        for news in said:
            if isinstance(news, Record):
                sink(news)
            elif news.plan is not None and news.name not in self._lives:
                self._make(news.name, news.plan)
            elif news.plan is None and news.name in self._lives:
                self._kill(self._lives.pop(news.name))

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
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
        except OSError:
            return []
        return [("last lines", "\n".join(lines)), ("log", str(path))] if lines else []

    # -- actors -----------------------------------------------------------------------------------------------

    def _make(self, name: str, plan: Plan) -> None:
        content = self._content(plan)
        options: dict[str, Any] = {
            "name": name,
            "namespace": self._cluster.namespace,
            "num_cpus": 0.0 if self._own else plan.cpus,
            "num_gpus": plan.gpus,
            "max_restarts": -1 if plan.restarts else 0,
            "max_concurrency": _CALLS_AT_ONCE,
            "scheduling_strategy": self._placed(plan),
        }
        actor = self._named(self._host.options(**options), name)
        self._lives[name] = _Life(plan, content, actor, *self._alive(name, actor, content))

    def _content(self, plan: Plan) -> Any:
        """How a role is made, pickled once for all that are made so."""
        if id(plan) not in self._sealed:
            self._sealed[id(plan)] = plan, self._ray.put(seal(plan.make, self._by_value))
        return self._sealed[id(plan)][1]

    def _named(self, host: Any, name: str) -> Any:
        end = time.monotonic() + _FREES_S
        while True:
            try:
                return host.remote(name, self._boot)
            except ValueError:  # one of that name was dismissed just now
                if time.monotonic() > end:
                    raise
            time.sleep(_LOOK_S)

    def _alive(self, name: str, actor: Any, content: Any) -> tuple[Any, Any]:
        self._incarnations[name] = self._incarnations.get(name, 0) + 1
        return actor.live.remote(content, self._incarnations[name]), actor.opened.remote()

    def _placed(self, plan: Plan) -> Any:
        if not plan.beside_driver:
            return "SPREAD"
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(self._cluster.node_id, soft=False)

    def _kill(self, life: _Life) -> None:
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(life.actor)


def _reason(error: BaseException) -> str:
    """What Ray says of a death, in a line."""
    lines = [line.strip() for line in str(error).splitlines()]
    for word in ("Worker exit type", "worker process has died", "died", "killed", "unavailable"):
        for line in lines:
            if word in line:
                return line[:300]
    return type(error).__name__
