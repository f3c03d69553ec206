"""Tensors between roles of two machines: one Gloo group of two ranks for each (caller, callee).

A death or an expired deadline breaks the pair that it concerns and no other; a newcomer opens a pair of its own. The
groups are torch's, made without a default group. What each side has to know of the other, one line of a store, travels
as a plain value in the control messages that the roles exchange anyway, so nothing listens but Gloo itself, on the
address that is given::

    caller                                            callee
    opening = offer(host, "shard-0", 5)
            -- opening.words ----------------------->
                                                      opening = accept(words, host, "replica-3", 5)
            <---------------------- opening.words --
    pair = opening.join(words)                        pair = opening.join()
    pair.send(tensor, 17, 30)                         pair.receive(tensor, 17, 30)

All pairs of a process share one thread and one listening socket of Gloo's; a pair costs one descriptor.

Four things about Gloo (torch 2.13) shape what stands here. A waiting thread is told of a lost peer only through
operations whose message has not begun: whoever waits for a half-written one waits until its deadline. So a receiver
waits for an empty message behind the data, a sender for an empty one that answers it; not for a small tensor, which a
socket takes at once and where this would cost three times the time. A group that gives up while it
still listens for its peer leaves a pointer behind, and the process crashes when the peer comes late after all: a side
that gives up joins itself instead. A message longer than its receiver's tensor ends the receiver's process: the length
is part of the tag, so that two that differ never meet. And large messages travel faster in pieces.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store

from squall.cluster.program import LateError, LostError
from squall.errors import RunError

Words = tuple[str, bytes]

PIECE_BYTES = 4 << 20
_WHOLE_BYTES = 64 << 10
_NUMBERS, _LENGTHS = 1 << 12, 131_071  # a prime; together under 2^30: tags are positive 32-bit integers
_NOBODY = (1 << 31) - 1
"""A tag that nobody sends under."""
_PATIENCE_S = 300.0
"""Gloo's own deadline: longer than the kernel tries to reach a host that does not answer (about two minutes)."""
_PARTING_S = 1.0

_devices: dict[str, Any] = {}
_devices_lock = threading.Lock()


def offer(host: str, peer: str, within: float) -> Opening:
    """Begins a pair; the peer answers with `accept`.

    Arguments:
        host: this machine's address as the peer reaches it; loopback where both are on one machine.
        peer: the other role's name, for messages.
        within: seconds until the pair must be there.

    Raises:
        RunError: `host` is no address of this machine.
    """
    return Opening(0, host, peer, within, None)


def accept(words: Words, host: str, peer: str, within: float) -> Opening:
    """Answers an offer.

    Arguments:
        words: those of the offer.
        host, peer, within: as for `offer`.
    """
    return Opening(1, host, peer, within, words)


class Opening:
    """A pair on its way; made by `offer` and `accept`, ended by `join` or `give_up`."""

    def __init__(self, rank: int, host: str, peer: str, within: float, theirs: Words | None) -> None:
        self._rank, self._host, self._peer, self._within = rank, host, peer, within
        self._deadline = time.monotonic() + within
        self._device = _device(host)
        self._mailbox = _Mailbox(theirs)
        self._groups: list[Any] = []
        self._why = ""
        self._thread = threading.Thread(target=self._meet, name=f"pair with {peer}", daemon=True)
        self._thread.start()

    @property
    def words(self) -> Words:
        """What the peer must be told."""
        return self._mailbox.ours(self._deadline)

    def join(self, words: Words | None = None) -> Pair:
        """Waits for the peer.

        Arguments:
            words: the peer's answer, where this side made the offer.

        Raises:
            LateError: the peer did not come in time.
            LostError: the peer cannot be reached.
        """
        if words is not None:
            self._mailbox.tell(words)
        self._thread.join(max(self._deadline - time.monotonic(), 0.0))
        if self._thread.is_alive():
            self.give_up()
            raise LateError(f"{self._peer} did not open its end of a pair within {self._within:g} s")
        if not self._groups:
            raise LostError(f"no way to {self._peer}", [("found", self._why), ("from", self._host)])
        return Pair(self._groups.pop(), 1 - self._rank, self._peer)

    def give_up(self) -> None:
        """Ends it without a pair: this side itself comes as its own peer, and both ends are thrown away."""
        with _devices_lock:  # a peer that comes late leaves a descriptor there, which goes with the device
            if _devices.get(self._host) is self._device:
                del _devices[self._host]
        stand_in = threading.Thread(target=self._stand_in, name=f"no pair with {self._peer}", daemon=True)
        stand_in.start()
        stand_in.join(_PARTING_S)
        self._thread.join(_PARTING_S)
        self._groups.clear()  # both at once: an end that finds the other gone would say so in the log

    def _meet(self) -> None:
        try:
            self._groups.append(_group(self._mailbox, self._rank, self._device))
        except RuntimeError as error:
            self._why = _reason(error)

    def _stand_in(self) -> None:
        mailbox = _Mailbox(self._mailbox.ours(time.monotonic() + _PARTING_S), tell=self._mailbox.tell)
        with suppress(RuntimeError):
            self._groups.append(_group(mailbox, 1 - self._rank, self._device))


class Pair:
    """Two processes that send each other tensors.

    Transfers may go on at the same time, in both directions, from any thread; each has a number of its own, the same
    on both sides. All calls block, without Python's lock. An error closes the pair for good, on both sides.
    """

    def __init__(self, group: Any, peer_rank: int, peer: str) -> None:
        self._group = group
        self._peer_rank = peer_rank
        self._peer = peer

    @property
    def closed(self) -> bool:
        """Whether it can carry no more."""
        return self._group is None

    def send(self, tensor: torch.Tensor, number: int, within: float) -> None:
        """Sends a tensor; returns when the peer has it, or, of a small one, will have it if it lives.

        Arguments:
            tensor: contiguous, on the CPU; left alone until then.
            number: of the transfer; any that no other under way has.
            within: seconds.

        Raises:
            LateError: the deadline passed.
            LostError: the peer died, or closed the pair.
        """
        pieces, (data, answer) = _pieces(tensor), _tags(number, tensor)

        def transfer(group: Any, deadline: float) -> None:
            works = [group.recv([_empty()], self._peer_rank, answer)] if len(pieces) > 1 else []
            works += [group.send([piece], self._peer_rank, data) for piece in pieces]
            for work in works:
                _wait(work, deadline)

        self._run(transfer, within)

    def receive(self, tensor: torch.Tensor, number: int, within: float) -> None:
        """Fills a tensor with the peer's; otherwise as `send`. If the two differ in length, both sides are late."""
        pieces, (data, answer) = _pieces(tensor), _tags(number, tensor)

        def transfer(group: Any, deadline: float) -> None:
            received = [group.recv([piece], self._peer_rank, data) for piece in pieces]
            for work in reversed(received):
                _wait(work, deadline)
            if len(pieces) > 1:
                _wait(group.send([_empty()], self._peer_rank, answer), deadline)

        self._run(transfer, within)

    def close(self) -> None:
        """Ends the pair; transfers under way fail on both sides. A second call does nothing."""
        group, self._group = self._group, None
        if group is None:
            return
        with suppress(RuntimeError):  # Gloo has no other way to end what other threads wait for
            group.recv([_empty()], self._peer_rank, _NOBODY).wait(timedelta(milliseconds=1))

    def _run(self, transfer: Callable[[Any, float], None], within: float) -> None:
        deadline = time.monotonic() + within
        group = self._group
        if group is None:
            raise LostError(f"the pair with {self._peer} is closed")
        try:
            transfer(group, deadline)
            return
        except RuntimeError as error:  # not kept: its frames hold the pair's descriptor
            why = _reason(error)
        late = time.monotonic() >= deadline
        self.close()
        del group
        if late:
            raise LateError(f"no tensor to or from {self._peer} within {within:g} s")
        raise LostError(f"{self._peer} is gone, or closed its pair with this process", [("found", why)])


class _Mailbox(Store):
    """A store of one line from each side; the peer's comes in a control message."""

    def __init__(self, theirs: Words | None, tell: Callable[[Words], None] | None = None) -> None:
        super().__init__()
        self._lines: dict[str, bytes] = {}
        self._ours: Words | None = None
        self._changed = threading.Condition()
        self._tell = tell
        if theirs is not None:
            self.tell(theirs)

    def tell(self, words: Words) -> None:
        """Puts the peer's line in, unless there is one."""
        with self._changed:
            self._lines.setdefault(*words)
            self._changed.notify_all()

    def ours(self, deadline: float) -> Words:
        """This side's line."""
        with self._changed:
            self._changed.wait_for(lambda: self._ours is not None, max(deadline - time.monotonic(), 0.0))
            if self._ours is None:
                raise LateError("Gloo did not say in time where it listens")
            return self._ours

    def set(self, key: str, value: Any) -> None:
        """What Gloo says: ``0/RANK`` and where it listens, 170 bytes, once."""
        with self._changed:
            self._ours = (key, bytes(value))
            self._lines[key] = bytes(value)
            self._changed.notify_all()
        if self._tell is not None:
            self._tell(self._ours)

    def get(self, key: str) -> bytes:
        """What Gloo asks for after it has waited: both lines."""
        return self._lines[key]

    def wait(self, keys: list[str], *_: object) -> None:
        """Waits for as long as it takes: whoever opened the pair keeps the deadline."""
        with self._changed:
            self._changed.wait_for(lambda: all(key in self._lines for key in keys))


def _device(host: str) -> Any:
    with _devices_lock:
        if host not in _devices:
            try:
                _devices[host] = cast(Any, dist).ProcessGroupGloo.create_device(hostname=host)
            except RuntimeError as error:
                raise RunError(
                    f"cannot listen on {host}",
                    [("found", _reason(error)), ("rule", "an address of this machine")],
                ) from None
        return _devices[host]


def _group(store: Store, rank: int, device: Any) -> Any:
    gloo = cast(Any, dist).ProcessGroupGloo
    options = gloo._Options()
    options._devices = [device]
    options._timeout = timedelta(seconds=_PATIENCE_S)
    options._threads = 0  # they run collectives, of which there are none
    return gloo(store, rank, 2, options)


def _tags(number: int, tensor: torch.Tensor) -> tuple[int, int]:
    """Of a transfer's data and of the answer to it."""
    tag = (tensor.nbytes % _LENGTHS) * _NUMBERS + number % _NUMBERS
    return 2 * tag, 2 * tag + 1


def _pieces(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A tensor's bytes in pieces with an empty one behind them; a small one whole."""
    raw = tensor.view(-1).view(torch.uint8)
    return (raw,) if raw.nbytes <= _WHOLE_BYTES else (*torch.split(raw, PIECE_BYTES), _empty())


def _empty() -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8)


def _wait(work: Any, deadline: float) -> None:
    left = deadline - time.monotonic()
    work.wait(timedelta(milliseconds=max(math.ceil(left * 1e3), 1)))


def _reason(error: Exception) -> str:
    """Gloo's first sentence, without the line of its source."""
    return str(error).splitlines()[0].rpartition("] ")[2].partition(". ")[0]
