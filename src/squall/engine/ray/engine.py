"""The Ray engine: every role an actor in a process of its own, on this machine or on a cluster.

The driver makes the actors, asks each to live, and hears from that one call when a role ends, fails or dies: a role
that its plan restarts is made again by Ray, in the same actor, and asked again. What the chief says comes as news that
the driver fetches; roles that it enlists or dismisses are made and ended here::

    ray.wait(lives of all roles, news of the chief; 0.2 s) --> ended?  failed?  died?  said?   asked?

A role that takes its time is not waited for: what is built here knows deaths, and nothing else of how roles fare.

What a machine lacks (memory, a module, the same versions) ends a program that is about to begin. Later, of a role that
joins or is made again, it is a death as any other: the role is made once more, perhaps elsewhere, and if that does not
help the program goes on without it, as long as another is there that does the same.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from squall.cluster.program import Plan, Program, Role
from squall.engine.ray.actor import Boot, Enlisted
from squall.engine.ray.alike import lacking, versions
from squall.engine.ray.calls import Calls
from squall.engine.ray.cluster import Cluster, in_words
from squall.engine.ray.making import Maker, Needs, unplaced
from squall.engine.ray.output import last_lines
from squall.errors import InputError, RunError, SquallError
from squall.records import Noted, Record

_LOOK_S = 0.2
_NEWS_S = 5.0

_DEATHS, _EARLY_S = 5, 10.0
"""A role that dies so often in a row, each time within so many seconds of having begun, will not get better."""

_PAUSE_S = 1.0
"""Before a role is made again that could not be made; twice as long each further time."""

_FREES_S = 10.0
"""Until the name of a role that was ended can be used again."""

_WAITS_S = 5.0
"""After which it is said that a role waits for room."""

_LATER_S = 60.0
"""After which roles that others do not need to begin with are made, whatever the others do."""

_ALIKE = ("replica",)
"""Kinds of roles of which each does what another could."""

_LAST_LINES = 8


@dataclass
class _Life:
    """A role as the driver knows it.

    Attributes:
        plan: of it; how it is made is in Ray's memory, as `content`.
        since: when it was to have a process, or has to be made.
        actor: None: it is still to be made.
        waking: the call that ends when there is a process; None: there is.
        living: the call that ends with the role; None: it is dead.
        opening: the call that ends when it has begun; None: it has.
        began: when it had begun; None: it has not.
        lived: it had begun once.
        deaths: in a row, each early.
        said: what was said last of why it cannot be made.
        waits: it was said that it waits for room.
    """

    plan: Plan
    content: Any
    since: float
    actor: Any = None
    waking: Any = None
    living: Any = None
    opening: Any = None
    began: float | None = None
    lived: bool = False
    deaths: int = 0
    said: str = ""
    waits: bool = False


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

        self._ray, self._cluster, self._logs, self._own = ray, cluster, logs, own
        paths = tuple(str(Path(path).absolute()) for path in sys.path)
        where = str(logs.absolute()) if logs else None
        boot = Boot(
            cluster.namespace, began, time.time(), where, cluster.tls, threads, paths, versions(), str(Path.cwd())
        )
        self._maker = Maker(cluster, boot, by_value, own)
        self._lives: dict[str, _Life] = {}
        self._incarnations: dict[str, int] = {}
        self._first: frozenset[str] = frozenset()
        self._others: Needs = 0.0, 0.0
        self._later: dict[str, Plan] = {}
        self._chief = ""
        self._sink: Callable[[Record], None] = lambda _: None

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
            self._chief, self._first, self._sink = program.chief, frozenset(program.roles), sink
            self._others = self._maker.free()[0]
            for name, plan in program.roles.items():
                if plan.urgent:
                    self._make(name, plan)
            self._later = {name: plan for name, plan in program.roles.items() if not plan.urgent}
            return self._followed(asked)
        finally:
            for life in self._lives.values():
                self._kill(life)
            self._lives = {}

    # -- what happens -----------------------------------------------------------------------------------------

    def _followed(self, asked: Callable[[], Sequence[tuple[str, Any]]]) -> Any:
        chief, later_at = self._chief, time.monotonic() + _LATER_S
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
                    self._hear(said)
                    news = self._lives[chief].actor.news.remote(heard, _NEWS_S)
                elif reference in waking:
                    self._note_awake(waking[reference], reference)
                elif reference in opening:
                    self._note_begun(opening[reference], reference)
                elif self._ended(living[reference], reference):
                    self._hear(self._got(self._lives[chief].actor.news.remote(heard, 0.0)))
                    return self._ray.get(reference)
            for word, value in asked():
                self._lives[chief].actor.ask.remote(word, value)
            begun = all(life.began is not None or life.deaths for life in self._lives.values())
            if begun or time.monotonic() > later_at:
                later, self._later = self._later, {}
                for name, plan in later.items():
                    self._make(name, plan)
            for name, life in list(self._lives.items()):
                if life.actor is None:
                    self._try_to_make(name, life)
            self._say_who_waits()

    def _note_awake(self, name: str, reference: Any) -> None:
        life = self._lives.get(name)
        if life is None or life.waking != reference:
            return  # dismissed meanwhile
        life.waking, life.waits = None, False
        if life.living is not None:
            return  # it was never dead: what is wrong with it `living` says
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayActorError as error:
            self._unmade(name, life, error)
        else:
            self._enliven(name, life)

    def _note_begun(self, name: str, reference: Any) -> None:
        life = self._lives.get(name)
        if life is None or life.opening != reference:
            return  # dismissed meanwhile, or made again
        life.opening = None
        with suppress(self._ray.exceptions.RayActorError):  # it died: `living` says so, too
            self._ray.get(reference)
            life.began, life.lived = time.monotonic(), True

    def _ended(self, name: str, reference: Any) -> bool:
        """Looks at a role whose life came to an end; whether the program is over, as the chief's `main` is.

        Raises:
            SquallError: what it raised.
            RunError: it died, and is not made again.
        """
        life = self._lives.get(name)
        if life is None or life.living != reference:
            return False  # dismissed meanwhile, or made again
        try:
            value = self._ray.get(reference)
        except self._ray.exceptions.RayActorError as error:
            self._died(name, life, error)
            return False
        except self._ray.exceptions.RayTaskError as error:
            self._lacks(name, life, lacking(name, error.ip or "", str(error)))
            return False
        if not isinstance(value, Calls.Raised):
            return True
        if not isinstance(value.error, InputError) or life.began is not None:
            raise value.error
        self._lacks(name, life, value.error)
        return False

    def _died(self, name: str, life: _Life, error: BaseException) -> None:
        if name == self._chief or not life.plan.restarts or getattr(error, "actor_init_failed", False):
            self._unmade(name, life, error)
            return
        early = life.began is None or time.monotonic() - life.began < _EARLY_S
        life.deaths = life.deaths + 1 if early else 1
        if life.deaths >= _DEATHS:
            rule = (
                f"a role that dies is started again, but not if it dies {_DEATHS} times in a row, soon after it began"
            )
            found = [("found", _reason(error)), *self._last_words(name), ("rule", rule)]
            self._give_up(name, life, RunError(f"the role {name} dies again and again", found))
            return
        life.began = life.living = life.opening = None
        life.since = time.monotonic()
        self._sink(Noted(f"{name} died, and Ray starts it again: {_reason(error)}"))
        life.waking = life.actor.awake.options(max_task_retries=-1).remote()

    def _unmade(self, name: str, life: _Life, error: BaseException) -> None:
        """Ray will not make a role again: what it is made of cannot be imported, or it had only one life."""
        if getattr(error, "actor_init_failed", False):
            self._lacks(name, life, lacking(name, "", str(error)))
        else:
            found = [("found", _reason(error)), *self._last_words(name)]
            self._give_up(name, life, RunError(f"the role {name} died", found))

    def _lacks(self, name: str, life: _Life, error: InputError) -> None:
        """A role's machine has not what it takes.

        Raises:
            InputError: that, where the role is one of those that the program begins with.
        """
        if not life.plan.restarts or (name in self._first and not life.lived):
            raise error
        self._kill(life)
        pause = _PAUSE_S * 2**life.deaths
        life.deaths += 1
        if life.deaths >= _DEATHS:
            self._give_up(name, life, error)
            return
        self._say(life, f"{name} cannot be made, and will be tried again: {_in_a_line(error)}")
        life.actor = life.waking = life.living = life.opening = life.began = None
        life.since = time.monotonic() + pause

    def _give_up(self, name: str, life: _Life, error: SquallError) -> None:
        """The program goes on without a role, if there is another like it.

        Raises:
            SquallError: there is none.
        """
        kind = life.plan.kind
        alike = [other for other in self._lives.values() if other is not life and other.plan.kind == kind]
        if kind not in _ALIKE or not life.plan.restarts or not alike:
            raise error
        self._kill(self._lives.pop(name))
        self._say(life, f"the run goes on without {name}: {_in_a_line(error)}")

    def _say_who_waits(self) -> None:
        """Says which roles have no process because there is no room for them."""
        needs = {name: self._maker.needs(life.plan) for name, life in self._lives.items() if life.actor is not None}
        starting = sorted((life.since, name) for name, life in self._lives.items() if life.waking is not None)
        late = time.monotonic() - _WAITS_S
        if not any(since < late and any(needs[name]) and not self._lives[name].waits for since, name in starting):
            return
        used, free, found = self._maker.free()
        there = [needs[name] for name, life in self._lives.items() if name in needs and life.waking is None]
        cpus, gpus = (used[kind] - self._others[kind] - sum(each[kind] for each in there) for kind in (0, 1))
        for name in unplaced([(name, needs[name]) for _, name in starting], (cpus, gpus), free):
            life = self._lives[name]
            if life.since < late and not life.waits:
                life.waits = True
                takes = in_words(dict(zip(("CPU", "GPU"), needs[name], strict=True)))
                self._sink(Noted(f"{name} waits for room: it takes {takes}; {found}"))

    def _say(self, life: _Life, text: str) -> None:
        """Says something of a role, once."""
        if text != life.said:
            life.said = text
            self._sink(Noted(text))

    def _hear(self, said: Sequence[Record | Enlisted]) -> None:
        for news in said:
            if isinstance(news, Record):
                self._sink(news)
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
        lines = last_lines(path, name, _LAST_LINES)
        return [("last lines", "\n".join(lines)), ("log", str(path))] if lines else []

    # -- actors -----------------------------------------------------------------------------------------------

    def _make(self, name: str, plan: Plan) -> None:
        content = self._maker.content(plan)
        life = self._lives[name] = _Life(replace(plan, make=Role), content, time.monotonic())
        self._try_to_make(name, life)

    def _try_to_make(self, name: str, life: _Life) -> None:
        if (now := time.monotonic()) < life.since:
            return
        life.actor = self._maker.actor(name, life.plan)
        if life.actor is not None:
            life.since = now
            life.waking = life.actor.awake.remote()
            self._enliven(name, life)
        elif now > life.since + _FREES_S:
            found = f"an actor of that name, which was ended, is still there after {_FREES_S:g} s"
            self._give_up(name, life, RunError(f"the role {name} cannot be made again", [("found", found)]))

    def _enliven(self, name: str, life: _Life) -> None:
        self._incarnations[name] = self._incarnations.get(name, 0) + 1
        life.living = life.actor.live.remote(life.content, self._incarnations[name], name == self._chief)
        life.opening = life.actor.opened.remote()

    def _kill(self, life: _Life) -> None:
        if life.actor is not None:
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


def _in_a_line(error: SquallError) -> str:
    """What an error says is wrong."""
    return ": ".join([error.headline, *(text.partition("\n")[0] for label, text in error.rows if label == "found")])
