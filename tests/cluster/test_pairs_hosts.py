"""Gloo pairs between hosts: network namespaces, each with its own address. Needs root."""

import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from squall.cluster.program import LateError, LostError
from squall.engine.ray import memory
from squall.engine.ray.pairs import accept, offer
from squall.errors import RunError
from tests.cluster.hosts import Host
from tests.cluster.hosts import hosts as plugged

CONTEXT = multiprocessing.get_context("forkserver")


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    with plugged(2) as found:
        yield found


class Role:
    """A process on a host; its pipe."""

    def __init__(self, host: Host, *arguments: Any) -> None:
        self._pipe, there = CONTEXT.Pipe()
        self._child = CONTEXT.Process(target=role, args=(host, there, *arguments))
        self._child.start()
        there.close()

    def tell(self, word: Any) -> None:
        self._pipe.send(word)

    def hear(self) -> Any:
        assert self._pipe.poll(60), "a role said nothing"
        try:
            return self._pipe.recv()
        except EOFError:
            raise AssertionError("a role died") from None

    def end(self) -> None:
        self._pipe.close()
        self._child.kill()
        self._child.join()
        self._child.close()


def role(host: Host, pipe: Any, offers: bool) -> None:
    """One end of a pair; sends or receives as it is told, and says what came of it."""
    host.enter()
    torch.set_num_threads(1)
    if offers:
        opening = offer(host.address, "the other", 30)
        pipe.send(opening.words)
        pair = opening.join(pipe.recv())
    else:
        opening = accept(pipe.recv(), host.address, "the other", 30)
        pipe.send(opening.words)
        pair = opening.join()
    pipe.send(listening())
    while True:
        try:
            word, number, numel, within = pipe.recv()
        except EOFError:
            return
        tensor = (torch.arange(numel) % 1000).float() if word == "send" else torch.zeros(numel)
        began = time.monotonic()
        try:
            getattr(pair, word)(tensor, number, within)
            pipe.send(float(tensor.double().sum()))
        except (LateError, LostError) as error:
            pipe.send((type(error), time.monotonic() - began))


def listening() -> set[str]:
    """Addresses, as the kernel writes them, on which anything listens on this host."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1].rsplit(":", 1)[0] for row in rows if row[3] == "0A"}


def kernel_word(address: str) -> str:
    return "".join(f"{int(part):02X}" for part in reversed(address.split(".")))


@pytest.fixture
def joined(hosts: list[Host]) -> Iterator[tuple[Role, Role]]:
    caller, callee = Role(hosts[0], True), Role(hosts[1], False)
    try:
        callee.tell(caller.hear())
        caller.tell(callee.hear())
        assert caller.hear() == {kernel_word(hosts[0].address)}
        assert callee.hear() == {kernel_word(hosts[1].address)}
        yield caller, callee
    finally:
        caller.end()
        callee.end()


def test_tensors_cross_and_each_host_listens_on_its_own_address_only(joined: tuple[Role, Role]) -> None:
    caller, callee = joined
    for number, numel in enumerate((1, 1000, 5_000_000)):
        for sender, receiver in ((caller, callee), (callee, caller)):
            receiver.tell(("receive", number, numel, 60))
            sender.tell(("send", number, numel, 60))
            assert sender.hear() == receiver.hear() == float((torch.arange(numel) % 1000).double().sum())


def test_a_cable_that_is_cut_is_an_expired_deadline_on_both_sides(hosts: list[Host], joined: tuple[Role, Role]) -> None:
    """Nothing says that a host is cut off: no end of a connection, no refusal."""
    caller, callee = joined
    hosts[0].cut()
    callee.tell(("receive", 0, 1_000_000, 2))
    caller.tell(("send", 0, 1_000_000, 2))
    for each in (caller, callee):
        kind, seconds = each.hear()
        assert kind is LateError
        assert 2 <= seconds < 4
    hosts[0].mend()
    caller.tell(("send", 1, 1000, 30))
    assert caller.hear()[0] is LostError  # closed for good


def unanswered(host: Host, pipe: Any) -> None:
    """Opens a pair with a host that is cut off before it could answer."""
    host.enter()
    pipe.send("here")
    began = time.monotonic()
    words = pipe.recv()
    opening = accept(words, host.address, "the other", 1)
    try:
        opening.join()
    except (LateError, LostError) as error:
        pipe.send((type(error), time.monotonic() - began))


def test_a_host_that_is_cut_off_before_it_answers_is_an_expired_deadline(hosts: list[Host]) -> None:
    pipe, there = CONTEXT.Pipe()
    child = CONTEXT.Process(target=unanswered, args=(hosts[0], there))
    child.start()
    try:
        assert pipe.recv() == "here"
        offering = Role(hosts[1], True)
        words = offering.hear()
        hosts[1].cut()
        pipe.send(words)
        assert pipe.poll(30)
        kind, seconds = pipe.recv()
        assert kind is LateError
        assert seconds < 5
        child.join(30)
        assert child.exitcode == 0
        offering.end()
    finally:
        child.kill()
        child.join()
        child.close()
        pipe.close()
        there.close()


def owns(host: Host, pipe: Any) -> None:
    host.enter()
    kept = memory.window(10, torch.float32)
    pipe.send(memory.describe(kept))
    pipe.recv()


def test_a_host_of_its_own_shares_no_memory(hosts: list[Host]) -> None:
    pipe, there = CONTEXT.Pipe()
    child = CONTEXT.Process(target=owns, args=(hosts[0], there))
    child.start()
    try:
        place = pipe.recv()
        with pytest.raises(RunError, match="cannot be reached from here"):
            memory.attach(place)
    finally:
        pipe.close()
        there.close()
        child.kill()
        child.join()
        child.close()
