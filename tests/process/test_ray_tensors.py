"""Tensors between real processes: windows of shared memory, and Gloo pairs; owners and peers die in the middle."""

import gc
import multiprocessing
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch

from squall.cluster.program import LateError, LostError
from squall.engine.ray import memory, pairs
from squall.engine.ray.memory import GoneError, attach, describe, window
from squall.engine.ray.pairs import Pair, accept, offer
from squall.errors import InputError, RunError

CONTEXT = multiprocessing.get_context("forkserver")
HOST = "127.0.0.1"
LARGE = 60_000_000  # elements; a transfer of it takes long enough to be met in its middle


@contextmanager
def process(function: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """Another process that runs `function(pipe, *arguments)`; its pipe here carries its number as `pid`."""
    here, there = CONTEXT.Pipe()
    child = CONTEXT.Process(target=running, args=(function, there, *arguments))
    child.start()
    there.close()
    try:
        yield Peer(here, child)
    finally:
        here.close()
        child.kill()
        child.join()
        child.close()


class Peer:
    def __init__(self, pipe: Any, child: Any) -> None:
        self.send, self.child, self.pid = pipe.send, child, child.pid
        self._pipe = pipe

    def recv(self) -> Any:
        assert self._pipe.poll(60), "the other process said nothing"
        return self._pipe.recv()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)


def running(function: Callable[..., None], pipe: Any, *arguments: Any) -> None:
    torch.set_num_threads(1)
    with suppress(EOFError):  # the test is over
        function(pipe, *arguments)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def threads() -> tuple[int, list[str]]:
    """Python's own, and the names of the others (a thread without a name of its own has the process's)."""
    names = []
    for path in Path("/proc/self/task").iterdir():
        with suppress(OSError):
            names.append((path / "comm").read_text().strip())
    own = Path("/proc/self/comm").read_text().strip()
    return threading.active_count(), sorted(name for name in names if name != own)


def mappings() -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:squall-" in line]


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# ---------------------------------------------------------------- windows


def doubles(pipe: Any) -> None:
    """Reads one window and writes another, as often as it is asked."""
    while True:
        source, target = pipe.recv()
        attach(target).copy_(2 * attach(source))
        pipe.send(descriptors())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8])
def test_a_callee_reads_one_window_and_writes_another(dtype: torch.dtype) -> None:
    source, target = window(1000, dtype), window(1000, dtype)
    assert source.data_ptr() % 4096 == 0
    assert not source.any()
    with process(doubles) as callee:
        source.copy_(torch.arange(1000) % 100)
        callee.send((describe(source), describe(target)))
        callee.recv()
        assert torch.equal(target, 2 * source)
        target.zero_()
        callee.send((describe(source[64:128]), describe(target[192:256])))
        callee.recv()
        assert torch.equal(target[192:256], 2 * source[64:128])
        assert not target[:192].any()
        assert not target[256:].any()


def test_only_a_contiguous_run_of_a_window_has_a_place() -> None:
    own = window(64, torch.float32)
    assert describe(torch.zeros(64)) is None
    assert describe(own[::2]) is None
    assert describe(own.clone()) is None
    matrix = describe(own.view(8, 8)[2:4])
    assert matrix is not None
    assert (matrix.offset, matrix.num_elements) == (64, 16)
    parameter = torch.nn.Parameter(torch.zeros(64))
    parameter.grad = own
    assert describe(parameter.grad) == describe(own)
    empty = describe(window(0, torch.float32))
    assert empty is not None
    assert empty.num_elements == 0


def test_an_empty_tensor_can_be_attached() -> None:
    empty = window(0, torch.float32)
    place = describe(empty)
    assert place is not None
    assert attach(place).shape == (0,)


def test_a_window_ends_with_its_last_tensor() -> None:
    memory.release()
    before, names = (descriptors(), len(mappings())), set(os.listdir("/dev/shm"))
    own = window(100_000, torch.float32)
    part = own[500:600]
    place = describe(own)
    assert place is not None
    assert set(os.listdir("/dev/shm")) == names
    del own
    gc.collect()
    part.fill_(3)
    assert attach(place)[500:600].eq(3).all()
    del part
    gc.collect()
    with pytest.raises(GoneError, match=f"process {os.getpid()} died, or gave up"):
        attach(place)
    assert (descriptors(), len(mappings())) == before


def owns(pipe: Any) -> None:
    kept = window(1000, torch.float32).fill_(7)
    pipe.send(describe(kept))
    pipe.recv()


def test_an_owner_that_is_killed_is_noticed_and_its_memory_let_go() -> None:
    memory.release()
    before = (descriptors(), len(mappings()))
    with process(owns) as owner:
        place, unmapped = owner.recv(), descriptors()
        kept = attach(place)
        assert attach(place).data_ptr() == kept.data_ptr()
        assert descriptors() == unmapped
        owner.signal(signal.SIGKILL)
        owner.child.join()
        assert kept.eq(7).all()
        with pytest.raises(GoneError):
            attach(place)
        del kept
    assert (descriptors(), len(mappings())) == before


def test_a_dead_owners_memory_is_let_go_by_whatever_is_attached_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing new comes: the windows of those that live are attached again and again."""
    memory.release()
    own = window(1000, torch.float32)
    living, before = describe(own), len(mappings())
    assert living is not None
    with process(owns) as owner:
        attach(living)
        attach(owner.recv())
        assert len(mappings()) == before + 2
        owner.signal(signal.SIGKILL)
        owner.child.join()
        monkeypatch.setattr(memory, "_looked", time.monotonic() - 2 * memory._LOOK_S)
        attach(living).fill_(1)
        assert len(mappings()) == before + 1
    assert own.eq(1).all()


def test_a_number_that_is_used_again_is_not_mistaken() -> None:
    first = window(10, torch.float32)
    old = describe(first)
    assert old is not None
    del first
    gc.collect()
    second = window(10, torch.float32)
    new = describe(second)
    assert new is not None
    assert (new.pid, new.fd) == (old.pid, old.fd)
    with pytest.raises(GoneError, match="used again"):
        attach(old)


def test_memory_of_another_machine_is_refused() -> None:
    own = window(10, torch.float32)
    place = describe(own)
    assert place is not None
    with pytest.raises(RunError, match="cannot be reached from here"):
        attach(replace(place, node="another"))


def gives_new_ones(pipe: Any) -> None:
    while True:
        pipe.recv()
        kept = window(1000, torch.float32)
        pipe.send(describe(kept))


def test_neither_side_keeps_what_windows_came_and_went() -> None:
    memory.release()
    before = (descriptors(), len(mappings()))
    with process(gives_new_ones) as owner:
        for _ in range(200):
            owner.send(None)
            attach(owner.recv()).fill_(1)
        assert len(mappings()) - before[1] <= 2
        assert len(os.listdir(f"/proc/{owner.pid}/fd")) < 40
    memory.release()
    assert (descriptors(), len(mappings())) == before


def test_windows_that_live_stay_mapped_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    memory.release()
    monkeypatch.setattr(memory, "_MOST_MAPPED", 4)
    own = [window(10, torch.float32) for _ in range(12)]
    before = len(mappings())
    for vector in own:
        place = describe(vector)
        assert place is not None
        attach(place).fill_(1)
    assert len(mappings()) - before == 4
    assert all(vector.eq(1).all() for vector in own)
    del own, vector
    gc.collect()
    memory.release()
    assert mappings() == []


def test_too_little_memory_is_said_before_any_is_taken() -> None:
    before = descriptors()
    with pytest.raises(InputError, match=r"no shared memory for a vector of 4,000\.00 GB") as caught:
        window(1_000_000_000_000, torch.float32)
    assert [label for label, _ in caught.value.rows] == ["found", "rule", "to do"]
    assert "are free" in caught.value.rows[0][1]
    assert descriptors() == before


def is_bounded(pipe: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    before = descriptors()
    try:
        window(1_000_000, torch.float32)
    except InputError as error:
        pipe.send((dict(error.rows)["found"], descriptors() - before, float(window(1000, torch.float32).sum())))


def test_a_kernel_that_refuses_is_an_error_and_no_signal() -> None:
    with process(is_bounded) as child:
        assert child.recv() == ("File too large", 0, 0.0)


# ---------------------------------------------------------------- pairs


def answers(pipe: Any) -> None:
    """Opens an end of a pair for every offer it gets, and sends or receives as it is told."""
    opened: list[Pair] = []
    while True:
        word, *rest = pipe.recv()
        try:
            if word == "accept":
                opening = accept(rest[0], HOST, "caller", rest[1])
                pipe.send(opening.words)
                opened.append(opening.join())
            elif word == "send":
                numel, number = rest
                opened[-1].send(torch.ones(numel), number, 60)
            elif word == "window":
                into = window(LARGE, torch.float32)
                pipe.send(describe(into))
                opened[-1].receive(into, 1, 60)
            elif word == "echo":
                numel, dtype, number = rest
                got = torch.zeros(numel, dtype=dtype)
                opened[-1].receive(got, number, 30)
                opened[-1].send(got + 1, number + 1, 30)
            pipe.send("done")
        except (LateError, LostError) as error:
            pipe.send(type(error))


def opened(peer: Peer, within: float = 30) -> Pair:
    opening = offer(HOST, "callee", within)
    peer.send(("accept", opening.words, within))
    pair = opening.join(peer.recv())
    assert peer.recv() == "done"
    return pair


@pytest.fixture(autouse=True)
def countable() -> Iterator[None]:
    """So that tests can count: Gloo's thread goes with each test, torch makes none, the fork server is there."""
    forkserver.ensure_running()
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pairs._devices.clear()
    yield
    pairs._devices.clear()
    torch.set_num_threads(num_threads)


Held = tuple[tuple[int, list[str]], int]


def held() -> Held:
    """Threads and descriptors of this process."""
    return threads(), descriptors()


def let_go(before: Held) -> None:
    """A native thread that was joined is the kernel's for a moment longer."""
    with suppress(AssertionError):
        until(lambda: held() == before, 5)
    assert held() == before


@pytest.mark.parametrize(
    ("numel", "dtype"),
    [
        (0, torch.float32),
        (1, torch.uint8),
        (1000, torch.bfloat16),
        (1_048_576, torch.float32),
        (3_000_001, torch.float64),
    ],
)
def test_tensors_come_as_they_were_sent(numel: int, dtype: torch.dtype) -> None:
    with process(answers) as callee:
        pair = opened(callee)
        for number in (0, 2, 1 << 40):
            sent = (torch.arange(numel) % 200).to(dtype)
            callee.send(("echo", numel, dtype, number))
            pair.send(sent, number, 30)
            got = torch.zeros(numel, dtype=dtype)
            pair.receive(got, number + 1, 30)
            assert torch.equal(got, sent + 1)
            assert callee.recv() == "done"
        pair.close()


def exchanges(pipe: Any, count: int) -> None:
    opening = accept(pipe.recv(), HOST, "caller", 30)
    pipe.send(opening.words)
    pipe.send(both_ways(opening.join(), count, 1))


def both_ways(pair: Pair, count: int, side: int) -> bool:
    """Many transfers at once, in both directions, each side in another order."""
    numbers = list(range(2 * count))
    order = numbers if side else numbers[::-1]
    good = []

    def one(number: int) -> None:
        length = 300_000 + 64 * number
        if number % 2 == side:
            pair.send(torch.full((length,), float(number)), number, 60)
        else:
            got = torch.zeros(length)
            pair.receive(got, number, 60)
            good.append(bool(got.eq(number).all()))

    running = [threading.Thread(target=one, args=(number,)) for number in order]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return good == [True] * count


def test_transfers_in_both_directions_do_not_mix() -> None:
    with process(exchanges, 12) as callee:
        opening = offer(HOST, "callee", 30)
        callee.send(opening.words)
        pair = opening.join(callee.recv())
        assert both_ways(pair, 12, 0)
        assert callee.recv() is True
        pair.close()


def test_a_pair_costs_one_descriptor_and_no_thread() -> None:
    with process(answers) as callee:
        kept = [opened(callee)]
        before = held()
        kept += [opened(callee) for _ in range(5)]
        let_go((before[0], before[1] + 5))
        for pair in kept:
            pair.close()
        let_go((before[0], before[1] - 1))


def test_on_one_machine_only_loopback_listens() -> None:
    with process(answers) as callee:
        pair = opened(callee)
        found = listening(os.getpid()) + listening(callee.pid)
        assert [address for address, _ in found] == ["0100007F", "0100007F"]
        pair.close()


def listening(pid: int) -> list[tuple[str, int]]:
    """Address, as the kernel writes it, and port of every TCP socket that a process listens on."""
    own = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}
    found = []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
                address, port = fields[1].split(":")
                found.append((address, int(port, 16)))
    return found


def lost_within_a_second(transfer: Callable[[], None], kill: Callable[[], None], midway: Callable[[], bool]) -> None:
    """A transfer, and a kill in its middle."""
    ended: list[tuple[Exception, float]] = []

    def run() -> None:
        try:
            transfer()
        except RunError as error:
            ended.append((error, time.monotonic()))

    thread = threading.Thread(target=run)
    thread.start()
    until(midway)
    killed = time.monotonic()
    kill()
    thread.join(60)
    assert len(ended) == 1, "the transfer was over before the kill"
    error, when = ended[0]
    assert isinstance(error, LostError)
    assert "callee is gone" in str(error)
    assert when - killed < 1.0


def test_a_sender_killed_midway_is_noticed_at_once() -> None:
    with process(answers) as callee:
        opened(callee).close()  # Gloo's thread and listening socket are there
        before = held()
        pair = opened(callee)
        callee.send(("send", LARGE, 1))
        got = torch.zeros(LARGE)
        lost_within_a_second(
            lambda: pair.receive(got, 1, 60), lambda: callee.signal(signal.SIGKILL), lambda: bool(got[0] == 1)
        )
        assert got[-1] == 0
        assert pair.closed
        let_go(before)
        with pytest.raises(LostError, match="closed"):
            pair.receive(got, 2, 60)


def test_a_receiver_killed_midway_is_noticed_at_once() -> None:
    with process(answers) as callee:
        opened(callee).close()
        before = held()
        pair = opened(callee)
        callee.send(("window",))
        seen = attach(callee.recv())
        lost_within_a_second(
            lambda: pair.send(torch.ones(LARGE), 1, 60),
            lambda: callee.signal(signal.SIGKILL),
            lambda: bool(seen[0] == 1),
        )
        assert seen[-1] == 0
        assert pair.closed
        let_go(before)


def test_after_the_deadline_nothing_is_written_any_more_and_a_new_pair_serves() -> None:
    with process(answers) as callee:
        pair = opened(callee)
        callee.send(("send", LARGE, 1))
        got = torch.zeros(LARGE)
        stopping = threading.Thread(target=lambda: (until(lambda: bool(got[0] == 1)), callee.signal(signal.SIGSTOP)))
        stopping.start()
        began = time.monotonic()
        with pytest.raises(LateError, match="no tensor to or from callee within 2 s"):
            pair.receive(got, 1, 2)
        assert time.monotonic() - began < 3
        stopping.join()
        assert pair.closed
        arrived = got.sum()
        callee.signal(signal.SIGCONT)
        assert callee.recv() is LostError  # the other end is closed by this one's deadline
        assert got.sum() == arrived < LARGE
        pair = opened(callee)
        callee.send(("echo", 10, torch.float32, 5))
        pair.send(torch.zeros(10), 5, 30)
        pair.receive(got[:10], 6, 30)
        assert got[:10].eq(1).all()
        pair.close()


def test_tensors_of_different_length_meet_nobody_and_harm_nobody() -> None:
    with process(answers) as callee:
        pair = opened(callee)
        callee.send(("send", 2000, 1))
        with pytest.raises(LateError):
            pair.receive(torch.zeros(1000), 1, 0.5)
        assert callee.recv() is LostError
        assert callee.child.is_alive()


def test_closing_ends_what_other_threads_wait_for() -> None:
    with process(answers) as callee:
        pair = opened(callee)
        errors: list[Exception] = []

        def wait() -> None:
            try:
                pair.receive(torch.zeros(10), 1, 60)
            except LostError as error:
                errors.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        callee.send(("send", 3, 2))  # and one of the callee, which nobody receives
        pair.close()
        thread.join(10)
        assert len(errors) == 1
        assert callee.recv() is LostError


def test_an_offer_that_nobody_answers_leaves_nothing() -> None:
    before = held()
    opening = offer(HOST, "callee", 0.2)
    with pytest.raises(LateError, match=r"callee did not open its end of a pair within 0\.2 s"):
        opening.join()
    opening = offer(HOST, "callee", 60)
    opening.give_up()
    del opening
    let_go(before)


def test_a_peer_that_comes_after_one_has_given_up_harms_nobody() -> None:
    """One of the two listens for the other, by their ports: over several rounds, with new ports, both cases come."""
    with process(answers) as callee:
        for _ in range(6):
            pairs._devices.clear()
            before = held()
            opening = offer(HOST, "callee", 30)
            callee.send(("accept", opening.words, 0.1))
            words = callee.recv()
            callee_has_one = callee.recv() == "done"
            pair = opening.join(words)
            if not callee_has_one:
                with pytest.raises((LateError, LostError)):
                    pair.send(torch.zeros(10), 1, 0.2)
            pair.close()
            del pair, opening
            pairs._devices.clear()
            let_go(before)
        again = opened(callee)
        callee.send(("echo", 10, torch.float32, 5))
        again.send(torch.zeros(10), 5, 30)
        assert callee.child.is_alive()
        again.close()


def test_an_address_of_another_machine_is_an_error() -> None:
    with pytest.raises(RunError, match=r"cannot listen on 192\.0\.2\.1"):
        offer("192.0.2.1", "callee", 5)


def test_no_way_to_the_peer_is_an_error() -> None:
    """An answer whose port nobody listens on any more."""
    with process(answers) as callee:
        opening = offer(HOST, "callee", 3)
        callee.send(("accept", opening.words, 30))
        words = callee.recv()
        callee.signal(signal.SIGKILL)
        callee.child.join()
        with pytest.raises((LateError, LostError)):
            opening.join(words).send(torch.zeros(10), 1, 5)


def ends_with_open_pair(pipe: Any) -> None:
    opening = accept(pipe.recv(), HOST, "caller", 30)
    pipe.send(opening.words)
    pair = opening.join()
    pair.receive(torch.zeros(100_000), 1, 30)
    waiting = threading.Thread(target=pair.receive, args=(torch.zeros(10), 2, 60), daemon=True)
    waiting.start()
    pipe.send(window(1000, torch.float32).numel())


def test_a_process_ends_well_with_a_pair_and_a_window_open() -> None:
    with process(ends_with_open_pair) as callee:
        opening = offer(HOST, "callee", 30)
        callee.send(opening.words)
        pair = opening.join(callee.recv())
        pair.send(torch.zeros(100_000), 1, 30)
        assert callee.recv() == 1000
        callee.child.join(30)
        assert callee.child.exitcode == 0
        with pytest.raises(LostError):
            pair.send(torch.zeros(10), 2, 30)


def test_what_comes_to_the_port_unasked_is_left_alone() -> None:
    with process(answers) as callee:
        pair = opened(callee)
        for _, port in listening(os.getpid()) + listening(callee.pid):
            with socket.create_connection((HOST, port), timeout=5) as stranger:
                stranger.sendall(os.urandom(64))
        callee.send(("echo", 10, torch.float32, 5))
        got = torch.zeros(10)
        pair.send(got, 5, 30)
        pair.receive(got, 6, 30)
        assert got.eq(1).all()
        pair.close()
