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
from squall.engine.ray.alike import lacking, versions
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

_SOME_BYTES = 1
"""Of memory, of which every machine has: Ray does not heed where a role is wanted that takes nothing."""


@dataclass
class _Life:
    """A role as the driver knows it.

    Attributes:
        content: how it is made, in Ray's memory.
        waking: the call that ends when there is a process again after a death; None: there is.
        living: the call that ends with the role; None: it is dead.
        opening: the call that ends when it has begun; None: it has.
        began: when it had begun; None: it has not.
        deaths: in a row, each early.
    """

    plan: Plan
    content: Any
    actor: Any
    waking: Any = None
    living: Any = None
    opening: Any = None
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
        self._boot = Boot(
            cluster.namespace, began, time.time(), where, cluster.tls, threads, paths, versions(), str(Path.cwd())
        )
        self._lives: dict[str, _Life] = {}
        self._incarnations: dict[str, int] = {}
        self._sealed: dict[int, tuple[Plan, Any]] = {}
        self._later: dict[str, Plan] = {}
        self._chief = ""
        self._dealt = 0
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
            self._chief = program.chief
            for name, plan in program.roles.items():
                if plan.urgent:
                    self._make(name, plan)
            self._later = {name: plan for name, plan in program.roles.items() if not plan.urgent}
            return self._followed(sink, asked)
        finally:
            for life in self._lives.values():
                self._kill(life)
            self._lives = {}

    # -- what happens -----------------------------------------------------------------------------------------

    def _followed(self, sink: Callable[[Record], None], asked: Callable[[], Sequence[tuple[str, Any]]]) -> Any:
        chief = self._chief
        heard, news = 0, self._lives[chief].actor.news.remote(0, _NEWS_S)
        while True:
            waking, living, opening = (
                {call: name for name, life in self._lives.items() if (call := getattr(life, kind)) is not None}
                for kind in ("waking", "living", "opening")
            )
            done, _ = self._ray.wait([*waking, *living, *opening, news], num_returns=1, timeout=_LOOK_S)
            for reference in done:
                if reference is news:
                    said = self._got(news)
                    heard += len(said)
                    self._hear(said, sink)
                    news = self._lives[chief].actor.news.remote(heard, _NEWS_S)
                elif reference in waking:
                    self._note_awake(waking[reference], reference)
                elif reference in opening:
                    self._note_begun(opening[reference], reference)
                elif self._ended(living[reference], reference):
                    self._hear(self._got(self._lives[chief].actor.news.remote(heard, 0.0)), sink)
                    return self._ray.get(reference)
            for word, value in asked():
                self._lives[chief].actor.ask.remote(word, value)
            if self._later and all(life.began is not None or life.deaths for life in self._lives.values()):
                for name, plan in self._later.items():
                    self._make(name, plan)
                self._later = {}

    def _note_awake(self, name: str, reference: Any) -> None:
        life = self._lives.get(name)
        if life is None or life.waking != reference:
            return  # dismissed meanwhile
        life.waking = None
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayActorError as error:
            if error.actor_init_failed:
                raise lacking(name, "", str(error)) from None
            raise RunError(f"the role {name} died", [("found", _reason(error)), *self._last_words(name)]) from None
        self._enliven(name, life)

    def _note_begun(self, name: str, reference: Any) -> None:
        life = self._lives.get(name)
        if life is None or life.opening != reference:
            return  # dismissed meanwhile, or made again
        life.opening = None
        with suppress(self._ray.exceptions.RayActorError):  # it died: `living` says so, too
            self._ray.get(reference)
            life.began = time.monotonic()

    def _ended(self, name: str, reference: Any) -> bool:
        """Looks at a role whose life came to an end; whether the program is over, as the chief's `main` is.

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
            self._died(name, life, error)
            return False
        except self._ray.exceptions.RayTaskError as error:
            raise lacking(name, error.ip or "", str(error)) from None
        if isinstance(value, Calls.Raised):
            raise value.error
        return True

    def _died(self, name: str, life: _Life, error: BaseException) -> None:
        if getattr(error, "actor_init_failed", False):
            raise lacking(name, "", str(error)) from None
        found = [("found", _reason(error)), *self._last_words(name)]
        if name == self._chief or not life.plan.restarts:
            raise RunError(f"the role {name} died", found) from None
        early = life.began is None or time.monotonic() - life.began < _EARLY_S
        life.deaths = life.deaths + 1 if early else 1
        if life.deaths >= _DEATHS:
            rule = (
                f"a role that dies is started again, but not if it dies {_DEATHS} times in a row, soon after it began"
            )
            raise RunError(f"the role {name} dies again and again", [*found, ("rule", rule)]) from None
        life.began = life.living = life.opening = None
        life.waking = life.actor.awake.options(max_task_retries=-1).remote()

    def _hear(self, said: Sequence[Record | Enlisted], sink: Callable[[Record], None]) -> None:
        for news in said:
            if isinstance(news, Record):
                sink(news)
            elif news.plan is not None and news.name not in self._lives:
                self._make(news.name, news.plan)
            elif news.plan is None and news.name in self._lives:
                self._kill(self._lives.pop(news.name))

    def _got(self, reference: Any) -> Any:
        """What the chief answers."""
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayActorError as error:
            found = [("found", _reason(error)), *self._last_words(self._chief)]
            raise RunError(f"the role {self._chief} died", found) from None

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
            "memory": _SOME_BYTES,
            "max_restarts": -1 if plan.restarts else 0,
            "max_concurrency": _CALLS_AT_ONCE,
            "scheduling_strategy": self._placed(plan),
        }
        actor = self._named(self._host.options(**options), name)
        self._lives[name] = _Life(plan, content, actor)
        self._enliven(name, self._lives[name])

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

    def _enliven(self, name: str, life: _Life) -> None:
        self._incarnations[name] = self._incarnations.get(name, 0) + 1
        life.living = life.actor.live.remote(life.content, self._incarnations[name], name == self._chief)
        life.opening = life.actor.opened.remote()

    def _placed(self, plan: Plan) -> Any:
        """Roles that compute go where there is room; those that take no processor are dealt out over the machines,
        beginning with the driver's, and go elsewhere only when theirs is dead."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if plan.beside_driver:
            return NodeAffinitySchedulingStrategy(self._cluster.node_id, soft=False)
        if plan.cpus or plan.gpus:
            return "SPREAD"
        nodes = [node.id for node in self._cluster.nodes()]
        first, dealt = nodes.index(self._cluster.node_id), self._dealt
        self._dealt += 1
        return NodeAffinitySchedulingStrategy(nodes[(first + dealt) % len(nodes)], soft=True)

    def _kill(self, life: _Life) -> None:
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(life.actor)


def _reason(error: BaseException) -> str:
    """What Ray says of a death, in a line; of a connection that broke off it knows no more than that."""
    if type(error).__name__ == "ActorUnavailableError":
        return "its process is gone: it was killed, or ended by what it ran"
    lines = [line.strip() for line in str(error).splitlines()]
    for word in ("Worker exit type", "worker process has died", "died", "killed"):
        for line in lines:
            if word in line:
                return line[:300]
    return type(error).__name__
