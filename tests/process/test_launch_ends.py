"""Real ranks that are killed, stopped, or asked to leave: who is named, how soon, and that nothing stays behind."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from squall.engine.outlets import LogFolder
from squall.engine.spmd import run_ranks
from squall.engine.verdict import Outcome
from squall.engine.watch import Grace
from tests.process.launcher import command, hangup, launcher, lines

# ranks that exchange numbers with all others, step by step, as training does; one of them comes to harm
LOCKSTEP = """
import os, signal, sys, time
from squall.engine.spmd import as_rank

def main():
    import torch
    from squall.cluster.world import join
    from squall.reduce.wire import exchange
    world = join("cpu", timeout_s=float(sys.argv[2]))
    others = [rank for rank in range(world.size) if rank != world.rank]
    for step in range(1000):
        if world.rank == 1 and step == 5:
            print(f"rank 1 writes this to standard output at step {step}")
            print(f"and this to standard error, at {time.monotonic()}", file=sys.stderr)
            HARM[sys.argv[1]]()
        sent, got = exchange(
            world.group,
            [(rank, torch.ones(1000)) for rank in others],
            [(rank, torch.empty(1000)) for rank in others],
            step, "to exchange partial sums", ordered=False,
        )
        got.wait()
        sent.wait()
    return 0

def segfault():
    import ctypes
    ctypes.string_at(0)

def forever():
    while True:
        time.sleep(1)  # never ends by itself: somebody must end it

HARM = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": segfault,
    "exit": lambda: os._exit(7),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "sleep": forever,
}
sys.exit(as_rank(main))
"""


def until(true: Callable[[], object], timeout_s: float) -> bool:
    end = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)  # between two looks, until the deadline
    return True


# -- dead -------------------------------------------------------------------------------------------------------------


def harmed(rank: str, how: str, timeout_s: float, **options) -> tuple[Outcome, float]:
    """The outcome, and the seconds from the harm to it."""
    outcome = run_ranks([rank, how, str(timeout_s)], 3, threads=1, **options)
    ended = time.monotonic()
    at = re.search(r"and this to standard error, at ([\d.]+)", outcome.message)
    assert at is not None, outcome.message
    return outcome, ended - float(at[1])


@pytest.mark.parametrize(
    ("how", "headline"),
    [
        ("kill", "rank 1 of 3 was killed by SIGKILL"),
        ("segfault", "rank 1 of 3 was killed by SIGSEGV"),
        ("exit", "rank 1 of 3 ended with exit status 7"),
    ],
)
def test_a_dead_rank_is_named_within_5_s_with_its_last_lines(
    how: str, headline: str, script: Callable[[str], str], mark: Callable[[], list[int]]
) -> None:
    outcome, seconds = harmed(script(LOCKSTEP), how, 60)
    assert outcome.headline == headline
    assert seconds < 5
    assert mark() == []


def test_a_crash_in_native_code_shows_where_it_was_called_from(script: Callable[[str], str]) -> None:
    outcome, _ = harmed(script(LOCKSTEP), "segfault", 60)
    lines = outcome.message.splitlines()
    frames = next(number for number, line in enumerate(lines) if line.startswith("  it was at"))
    assert "ctypes/__init__.py" in lines[frames]
    assert re.search(r"rank.py:\d+ in segfault$", lines[frames + 1])
    assert "Fatal" not in outcome.message


def test_a_stopped_rank_is_named_with_what_the_others_waited_for(
    script: Callable[[str], str], mark: Callable[[], list[int]]
) -> None:
    outcome, seconds = harmed(script(LOCKSTEP), "stop", 2)
    assert outcome.cause == "stuck"
    assert re.fullmatch(r"rank 1 of 3 is stuck: rank [02] waited 2 s for it to exchange partial sums", outcome.headline)
    assert "it is stopped: by SIGSTOP" in outcome.message
    assert "rank 1 writes this to standard output at step 5" in outcome.message
    assert "a longer --timeout" in outcome.message
    assert 2 < seconds < 8
    assert mark() == []


def test_a_rank_that_only_takes_forever_is_stuck_too(script: Callable[[str], str]) -> None:
    outcome, _ = harmed(script(LOCKSTEP), "sleep", 1)
    assert outcome.headline.startswith("rank 1 of 3 is stuck: rank ")
    assert "it is alive" in outcome.message
    assert re.search(r"  it was at    .*rank.py:\d+ in forever\n", outcome.message)


FAMILY = """
import multiprocessing, os, signal, subprocess, sys, time
from squall.engine.spmd import as_rank

def loader():
    time.sleep(600)  # never ends by itself: somebody must end it

def main():
    forked = [multiprocessing.get_context("fork").Process(target=loader) for _ in range(2)]
    lock = multiprocessing.get_context("spawn").Lock()  # a named semaphore, and the tracker that removes it
    for process in forked:
        process.start()
    if sys.argv[1] != "only forks":
        subprocess.Popen(["sleep", "600"])
        subprocess.Popen(["sleep", "600"], start_new_session=True)
    os.write(1, b"ready\\n")
    if sys.argv[1] == "ends":
        os._exit(0)
    if os.environ["RANK"] == "1" and sys.argv[1] == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()
if __name__ == "__main__":
    sys.exit(as_rank(main))
"""


def semaphores() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith("sem.mp-")}


@contextlib.contextmanager
def little_memory(num_bytes: int) -> Iterator[Path | None]:
    """A control group of version 1 that may use no more than that; None where this machine does not let us make one."""
    group = Path("/sys/fs/cgroup/memory", f"squall-test-{os.getpid()}")
    made: Path | None = None
    with contextlib.suppress(OSError):
        group.mkdir()
        made = group
        (group / "memory.limit_in_bytes").write_text(str(num_bytes))
    try:
        yield made
    finally:
        if made is not None:
            assert until(lambda: not (group / "cgroup.procs").read_text(), 10)
            group.rmdir()


HUNGRY = """
import os, signal, sys
from squall.engine.spmd import as_rank
def main():
    if os.environ["RANK"] == "1":
        print("allocating", file=sys.stderr)
        held = []
        while sys.argv[1] == "for memory":
            held.append(bytearray(50_000_000))
        os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()
sys.exit(as_rank(main))
"""


def test_a_rank_killed_for_want_of_memory_is_told_from_others(
    script: Callable[[str], str], mark: Callable[[], list[int]]
) -> None:
    hungry = script(HUNGRY)
    with little_memory(900_000_000) as group:
        if group is not None:
            joined = ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh", *command(hungry, "for memory")]
            done = subprocess.run(joined, capture_output=True, text=True, timeout=60)
            assert "rank 1 of 2 was killed by SIGKILL" in done.stderr
            assert "found        the kernel killed it: its control group is out of memory\n" in done.stderr
    done = subprocess.run(command(hungry, "by itself"), capture_output=True, text=True, timeout=60)
    assert "often        the machine ran out of memory: dmesg says so\n" in done.stderr


@pytest.mark.parametrize(("how", "status"), [("dies", 1), ("ends", 0)])
def test_what_ranks_leave_behind_is_ended_with_them(
    how: str, status: int, script: Callable[[str], str], mark: Callable[[], list[int]]
) -> None:
    before = semaphores()
    outcome = run_ranks([script(FAMILY), how], 2, threads=1)
    assert outcome.status == status, outcome.message
    assert mark() == []
    assert semaphores() <= before


# -- asked to leave ---------------------------------------------------------------------------------------------------

LEAVES = """
import os, signal, subprocess, sys, time
from squall.engine.spmd import as_rank

def main():
    noted = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: noted.append(number))
    loader = subprocess.Popen(["sleep", "600"])
    os.write(1, b"ready\\n") if os.environ["RANK"] == "0" else print("ready")
    while not noted:
        time.sleep(0.01)  # between two looks, until the signal comes
    os.write(1, b"asked\\n")
    time.sleep(0.5)  # saves; long enough for a signal that the loader should not get to have ended it
    assert loader.poll() is None, "a loader got the signal too"
    loader.kill()
    loader.wait()
    if sys.argv[1] == "leave" or (sys.argv[1] == "one stays" and os.environ["RANK"] == "0"):
        sys.exit(128 + noted[0])
    time.sleep(600)  # does not leave: is killed
sys.exit(as_rank(main))
"""


@contextlib.contextmanager
def ready(*arguments: str, leave_s: float = 60.0) -> Iterator[subprocess.Popen[str]]:
    """A launcher whose two ranks are ready."""
    with launcher(*arguments, leave_s=leave_s) as process:
        assert lines(process, 2) == ["ready\n"] * 2
        yield process


@pytest.mark.parametrize(
    "how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1], ids=lambda how: how.name
)
def test_a_signal_is_sent_on_to_the_ranks_alone_which_save_and_leave(
    how: signal.Signals, script: Callable[[str], str], mark: Callable[[], list[int]]
) -> None:
    with hangup(signal.SIG_DFL), ready(script(LEAVES), "leave") as process:
        process.send_signal(how)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (128 + how, "")
    assert mark() == []


def test_ranks_that_do_not_leave_are_killed_and_named(
    script: Callable[[str], str], mark: Callable[[], list[int]]
) -> None:
    with ready(script(LEAVES), "one stays", leave_s=1.5) as process:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert err == "squall: stopped by SIGTERM; rank 1 of 2 killed: not gone within 1.5 s\n"


def test_a_second_signal_ends_everything_at_once(script: Callable[[str], str], mark: Callable[[], list[int]]) -> None:
    with ready(script(LEAVES), "stay") as process:
        process.send_signal(signal.SIGINT)
        assert "asked\n" in lines(process, 1)  # else the kernel might join the two
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        assert time.monotonic() - started < 5
    assert (process.returncode, err) == (130, "squall: stopped by SIGINT; rank 0, 1 of 2 killed at once\n")


LATE = """
import os, signal, sys
from squall.engine import {where} as module

def late(*_):
    os.kill(os.getpid(), signal.SIGTERM)  # while the last is put in order after a death
    return real(*_)

from squall.engine.spmd import run_ranks
real, module.{name} = module.{name}, late
outcome = run_ranks(["-c", "import os; os.kill(os.getpid(), 9)"], 1, threads=1)
print(outcome.status, outcome.cause, outcome.headline)
"""


def test_a_signal_that_comes_after_the_last_rank_has_ended_is_heard() -> None:
    """Else a job that is preempted as one of its ranks dies would start again."""
    code = LATE.format(where="spmd", name="sweep")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "143 left stopped by SIGTERM; rank 0 of 1 was killed by SIGKILL\n"


def test_a_signal_that_comes_too_late_to_be_heard_reaches_the_launchers_own_handler() -> None:
    code = LATE.format(where="ranks", name="verdict")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "")


def test_a_launcher_under_nohup_does_not_hear_the_hangup(
    script: Callable[[str], str], mark: Callable[[], list[int]]
) -> None:
    with hangup(signal.SIG_IGN), ready(script(LEAVES), "leave") as process:
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM


# -- the launcher itself ----------------------------------------------------------------------------------------------


def test_a_killed_launcher_takes_ranks_and_their_loaders_with_it(
    script: Callable[[str], str], mark: Callable[[], list[int]]
) -> None:
    with ready(script(FAMILY), "only forks") as process:
        assert len(mark()) >= 7  # launcher, ranks, two loaders each
        process.kill()
        process.wait()
        assert until(lambda: mark() == [], 10), mark()


TORCHRUN = """
import multiprocessing, os, signal, time
from squall.cluster.world import join

def loader():
    time.sleep(600)  # never ends by itself: somebody must end it

world = join("cpu", timeout_s=60)
multiprocessing.get_context("fork").Process(target=loader).start()
world.group.barrier().wait()
os.write(1, b"ready\\n")
signal.pause()
"""


@pytest.mark.parametrize("shell", [False, True])
def test_torchrun_killed_takes_its_ranks_with_it(
    shell: bool, script: Callable[[str], str], mark: Callable[[], list[int]]
) -> None:
    """torchrun alone leaves them training to their end."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    if shell:
        wrapper = Path(script(TORCHRUN)).with_name("wrapper.sh")
        wrapper.write_text(f"#!/bin/sh\nexec {sys.executable} {script(TORCHRUN)}\n")
        wrapper.chmod(0o755)
        torchrun += ["--no-python", str(wrapper)]
    else:
        torchrun.append(script(TORCHRUN))
    process = subprocess.Popen(torchrun, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        process.kill()
        process.wait()
        assert until(lambda: mark() == [], 10), mark()
    finally:
        process.kill()
        process.communicate()


# -- what ranks write -------------------------------------------------------------------------------------------------

CHATS = """
import os, sys
from squall.engine.spmd import as_rank
def main():
    for i in range(40_000):
        if os.environ["RANK"] == "1":
            print(f"{i:06} " + "x" * 500)
    print("the end", file=sys.stderr)
    return 0
sys.exit(as_rank(main))
"""


def test_a_chatty_rank_never_waits_for_a_terminal_that_stands_still(
    script: Callable[[str], str], tmp_path: Path, mark: Callable[[], list[int]]
) -> None:
    (tmp_path / "records.jsonl").touch()
    code = (
        "import sys; from pathlib import Path; from squall.engine.spmd import run_ranks;"
        "from squall.engine.outlets import LogFolder; at = Path(sys.argv[2]);"
        "folder = LogFolder(at / 'logs', after=at / 'records.jsonl');"
        "sys.exit(run_ranks([sys.argv[1]], 2, threads=1, logs=folder).status)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, script(CHATS), str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        process.wait(30)  # nobody reads its output meanwhile
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()
    assert (tmp_path / "logs" / "rank-0.log").read_text().endswith("\nthe end\n")
    assert "the end\n" in (tmp_path / "logs" / "rank-1.log").read_text()


def test_a_ranks_lines_stand_in_a_file_that_is_named(script: Callable[[str], str], tmp_path: Path) -> None:
    folder = LogFolder(tmp_path / "run" / "logs", after=tmp_path / "run" / "records.jsonl")
    folder.after.parent.mkdir()
    folder.after.touch()
    outcome, _ = harmed(script(LOCKSTEP), "kill", 60, logs=folder)
    assert f"log          {folder.file(1)}" in outcome.message
    assert "rank 1 writes this to standard output at step 5" in folder.file(1).read_text()
    assert [path.name for path in folder.path.iterdir()] == ["rank-1.log"]


def test_a_launch_that_never_begins_a_run_writes_nothing(script: Callable[[str], str], tmp_path: Path) -> None:
    folder = LogFolder(tmp_path / "run" / "logs", after=tmp_path / "run" / "records.jsonl")
    harmed(script(LOCKSTEP), "kill", 60, logs=folder, grace=Grace(failed=2))
    assert not (tmp_path / "run").exists()
