"""Which rank says an error where no launcher of ours collects them: under torchrun, under srun.

All ranks find the same mistake in a recipe, and each would print it; a mistake in the files of one machine is found by
its ranks only, and must not be lost. So a rank that fails leaves a word in the job's store and looks at the others'
(`squall.engine.report` does the same with the ranks that we start)::

    an error of its own, not said by a lower rank     speaks
    the same as a lower rank's, but for numbers       is silent, and leaves with that rank's status
    a lost connection                                 is silent where a rank has an error of its own
    nobody answers in time                            speaks: rather twice than never

Rank 0 speaks before it looks: nothing can be said before it, and the store costs the second that torch takes.
"""

from __future__ import annotations

import gc
import json
import os
import re
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass

from squall.cluster.place import Place, find
from squall.engine.report import lost_peer
from squall.errors import InputError, SquallError, UserCodeError

PATIENCE_S = 10.0
"""Seconds to wait for the other ranks' words."""

_ECHO_S = 3.0  # ranks fail within milliseconds of each other; well below the patience of those who let them speak
_POLL_S = 0.05


@dataclass(frozen=True)
class Word:
    """What a rank leaves in the store.

    Attributes:
        rank: whose it is.
        mark: equal for errors that are the same to a person.
        status: exit status.
        lost: the error is that another rank is gone.
    """

    rank: int
    mark: str
    status: int
    lost: bool

    @staticmethod
    def of(error: Exception, rank: int) -> Word:
        """The word of an error; ranks, samples and steps are taken out of its mark."""
        status = error.exit_status if isinstance(error, SquallError) else 1
        text = error.headline if isinstance(error, UserCodeError) else str(error)
        return Word(rank, f"{type(error).__name__}: {re.sub('[0-9]+', '#', text)}", status, lost_peer(error))


def job() -> Place | None:
    """This process's place among several that something else started; None where it is alone."""
    try:
        place = find(os.environ)
    except InputError:
        return None
    return place if place.size > 1 else None


def quiet_torch() -> None:
    """A lost peer is reported once, by us: torch's own pages about it are for those who ask. Before torch is loaded."""
    if "torch" not in sys.modules:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")


def defers_to(own: Word, heard: Mapping[int, Word], *, late: bool) -> Word | None:
    """Whose word stands for this rank's too: its own (it speaks), another's, or None (wait for more).

    Arguments:
        heard: the other ranks' words so far.
        late: nobody is waited for any more.
    """
    others = [heard[rank] for rank in sorted(heard)]
    owns = [word for word in others if not word.lost]
    if not own.lost:
        same = [word for word in owns if word.rank < own.rank and word.mark == own.mark]
        known = late or all(rank in heard for rank in range(own.rank))
        return same[0] if same else own if known else None
    if owns:
        return owns[0]
    return next((word for word in others if word.rank < own.rank), own) if late else None


def tell(text: str) -> None:
    """Prints an error."""
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)


def say(error: Exception, place: Place, text: str) -> int:
    """Lets one of the ranks that fail alike print its text; returns the exit status.

    Arguments:
        error: of this rank; its world is closed, its traceback is taken away.
        place: of this rank.
        text: what to print.
    """
    own = Word.of(error, place.rank)
    told = place.rank == 0 and not own.lost
    if told:
        tell(text)
    _let_go(error)
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        # the store may go with the world of the rank that held it, and come back when that rank is here too
        with suppress(RuntimeError, OSError):
            words = _Words(place, end)
            words.leave(own)
            chosen = words.choose(own)
            if chosen is own and not told:
                told = True
                tell(text)
            if not words.part(own, chosen) and not told:
                tell(text)
            return chosen.status
        if told:
            break
        time.sleep(_POLL_S)
    if not told:
        tell(text)
    return own.status


def _let_go(error: BaseException) -> None:
    """Ends this rank's connections, so that ranks that wait for it fail now: the frames of the error hold them."""
    found: list[BaseException | None] = [error]
    seen: set[int] = set()
    while found:
        at = found.pop()
        if at is not None and id(at) not in seen:
            seen.add(id(at))
            at.__traceback__ = None
            found += [at.__cause__, at.__context__]
    gc.collect()


class _Words:
    """The words in the job's store, and how long to wait for more."""

    def __init__(self, place: Place, end: float) -> None:
        from squall.cluster.world import meet  # loads torch

        self._place, self._end = place, end
        self._store = meet(place, max(end - time.monotonic(), _POLL_S))
        self._heard: dict[int, Word] = {}

    def leave(self, own: Word) -> None:
        """Leaves this rank's word."""
        self._store.set(f"word/{own.rank}", json.dumps(asdict(own)))

    def choose(self, own: Word) -> Word:
        """Listens until it is known who speaks."""
        end = min(self._end, time.monotonic() + _ECHO_S)
        while True:
            late = time.monotonic() > end
            self._listen()
            chosen = defers_to(own, self._heard, late=late)
            if chosen is not None:
                return chosen
            time.sleep(_POLL_S)

    def part(self, own: Word, chosen: Word) -> bool:
        """Stays until the error is said, as torchrun ends the others with the first that leaves; and rank 0 until the
        others have left, where it holds the store.

        Returns:
            Whether it was said.
        """
        said = chosen is own
        if said:
            self._store.set(f"said/{own.rank}", "")
        else:
            said = self._wait([f"said/{chosen.rank}"], PATIENCE_S)
        self._store.set(f"left/{own.rank}", "")
        if own.rank == 0 and not self._place.agent_store:
            self._wait([f"left/{rank}" for rank in range(self._place.size)], _ECHO_S)
        return said

    def _listen(self) -> None:
        for rank in range(self._place.size):
            key = f"word/{rank}"
            if rank != self._place.rank and rank not in self._heard and self._store.check([key]):
                self._heard[rank] = Word(**json.loads(self._store.get(key)))

    def _wait(self, keys: list[str], patience_s: float) -> bool:
        """Whether all keys came in time."""
        end = time.monotonic() + patience_s
        while not self._store.check(keys):
            if time.monotonic() > end:
                return False
            time.sleep(_POLL_S)
        return True
