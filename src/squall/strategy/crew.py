"""A coordinator's replicas: who is there, what each asked and was answered, who has fallen silent, who is to leave.

What there is to do, the coordinator knows (`Host`); how it gets to replicas that come, go, die and ask twice is the
same for all asynchronous strategies, and stands here::

    replica   ask(settled, wanted)  -->  answer   host.settle, then host.find until there is something
    user      resize(number)        -->  joining ones enlisted, leaving ones let go when they hand in
    time      look                  -->  the silent: what they had is handed out again
"""

from __future__ import annotations

from typing import Protocol

from squall.cluster.program import Here, Plan, Promise
from squall.records import Noted, Resized, RoleChanged
from squall.server.messages import Ask, Lease
from squall.strategy.members import Member, Members

ANSWER_S = 10.0
"""That a question may stay open before it is answered "nothing now"."""

LOOK_S = 1.0


class Host(Protocol):
    """The coordinator that replicas ask."""

    @property
    def closed(self) -> bool:
        """Whether nothing is handed out any more."""

    def settle(self, ask: Ask) -> None:
        """Takes a report."""

    def find(self, member: Member, ask: Ask) -> Lease | None:
        """What there is for a replica to do now."""

    def hand_back(self, name: str) -> bool:
        """Takes back what a replica had; says whether that was anything."""

    @property
    def usual_duration(self) -> float:
        """Seconds in which there may be something new to do."""


class Crew:
    """The replicas of one program.

    Arguments:
        here: the coordinator's engine.
        host: the coordinator.
        replicas: how many there are to be.
        plan: how one is made that joins later.
        lease_timeout: seconds of silence after which what a replica has is handed out again.
    """

    def __init__(self, here: Here, host: Host, replicas: int, plan: Plan | None, lease_timeout: float) -> None:
        self._here, self._host, self._plan, self._lease_timeout = here, host, plan, lease_timeout
        self.members = Members(replicas)
        self._waiting: list[Promise] = []

    async def answer(self, ask: Ask) -> Lease:
        """Takes a replica's report and answers with what is next for it."""
        now, name, members = self._here.now(), ask.sender.name, self.members
        is_new = members.is_new(ask.sender, ask.number)
        member, change = members.heard(ask.sender, now)
        if change:
            self._here.emit(RoleChanged(now, name, change))
            self._hand_back(name)
        if member is None:  # it is dead, or has left; what it has done is done
            if is_new:
                self._settle(ask)
            return Lease(None, over=True)
        if ask.number <= member.asked:
            return await self._answered_before(member, ask)
        member.asked, member.answer, member.answered = ask.number, None, self._here.promise()
        self._settle(ask)
        lease = await self._granted(member, ask) if ask.wanted else Lease(None, over=True)
        if member.asked == ask.number:
            member.answer = lease
            member.answered.keep()
        goes = member.leaving or not self._host.closed
        if goes and not ask.wanted and members.get(name) is member:
            self._leave(name)
        return lease

    def look(self) -> None:
        """Hands out again what those had that have not been heard for long; to be called now and then."""
        now = self._here.now()
        for member in self.members.fall_silent(now - self._lease_timeout):
            self._here.emit(RoleChanged(now, member.name, "silent"))
            self._hand_back(member.name)
            self.wake()  # another may lead the warm start
        for name in [member.name for member in self.members if member.silent and member.leaving]:
            self._leave(name)

    def resize(self, wanted: int) -> None:
        """Another number of replicas is wanted."""
        before = self.members.wanted
        joining, unheard = self.members.resize(wanted)
        for name in joining:
            self._enlist(name)
        for name in unheard:
            self._here.dismiss(name)
        self._here.emit(Resized(self._here.now(), wanted, before))
        self._here.emit(Noted(f"from now on {wanted} replica{'' if wanted == 1 else 's'}; there were {before}"))
        self.wake()

    def changed(self) -> Promise:
        """Kept when something has changed that others wait for."""
        promise = self._here.promise()
        self._waiting.append(promise)
        return promise

    def wake(self) -> None:
        """Something has changed."""
        waiting, self._waiting = self._waiting, []
        for promise in waiting:
            promise.keep()

    async def _answered_before(self, member: Member, ask: Ask) -> Lease:
        """The same question came twice: it has one answer."""
        if ask.number == member.asked and member.answer is None and member.answered is not None:
            await self._here.first_of(member.answered, within=ANSWER_S)
        return member.answer if ask.number == member.asked and member.answer is not None else Lease(None)

    async def _granted(self, member: Member, ask: Ask) -> Lease:
        until = self._here.now() + min(ANSWER_S, self._lease_timeout / 3)  # who asks again is not silent
        while not (self._host.closed or member.leaving):
            lease = self._host.find(member, ask)
            if lease is not None:
                return lease
            if not ask.patient or self._here.now() >= until:
                return Lease(None)
            await self._here.first_of(self.changed(), within=min(LOOK_S, self._host.usual_duration))
            if self.members.get(member.name) is not member or member.asked != ask.number:
                break  # nobody waits for this answer any more
        return Lease(None, over=True)

    def _settle(self, ask: Ask) -> None:
        self._host.settle(ask)
        if ask.settled:
            self.wake()

    def _hand_back(self, name: str) -> None:
        if self._host.hand_back(name):
            self.wake()

    def _enlist(self, name: str) -> None:
        assert self._plan is not None
        self._here.enlist(name, self._plan)

    def _leave(self, name: str) -> None:
        wanted = self.members.leave(name)  # again, by somebody who asked while it was on its way out
        self._hand_back(name)
        self._here.emit(RoleChanged(self._here.now(), name, "left"))
        self._here.dismiss(name)
        if wanted:
            self._enlist(name)
