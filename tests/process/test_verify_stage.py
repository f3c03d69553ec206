"""The stage of `squall verify`: what ranks find, how their ends are told, and that nothing ever stays behind."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from squall.errors import RunError
from squall.verify.stage import Ended, Job, Stage

ROOT = Path(__file__).resolve().parents[2]
MAINS = "tests.process.stage_mains"
DEADLINE_S = 20.0  # for what takes a moment


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """One for all tests that do it no harm."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        with Stage([MAINS, "accelerate", "lightning", "no_such_module"]) as stage:
            yield stage


@pytest.fixture
def own_stage(mark: Callable[[], list[int]], monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """A fresh one, which may come to harm; whatever it starts bears the mark."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with Stage() as stage:
        yield stage


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    """A job with a function of `stage_mains`; other keywords are its options."""

    def make(main: str, processes: int = 2, limit_s: float = 60.0, **options: Any) -> Job:
        own = {name: options.pop(name) for name in ("grace_s", "environment") if name in options}
        return Job(
            main=f"{MAINS}:{main}", options=options, processes=processes, folder=tmp_path, limit_s=limit_s, **own
        )

    return make


def told(folder: Path, rank: int) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / f"told-{rank}.json").read_text())
    return values


def gone(pids: list[int], within_s: float = DEADLINE_S) -> bool:
    """Waits until the processes have ended."""
    end = time.monotonic() + within_s
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        ended = poll.poll(max(end - time.monotonic(), 0) * 1000)
        os.close(fd)
        if not ended:
            return False
    return True


def statuses(ended: Ended) -> list[tuple[int | None, int | None, bool]]:
    return [(end.status, end.signal, end.ended_by_us) for end in ended.ranks]


WELL = (0, None, False)


class TestWhatRanksFind:
    def test_the_environment_is_that_of_torchrun(self, stage: Stage, job: Callable[..., Job], tmp_path: Path) -> None:
        script = tmp_path / "dump.py"
        script.write_text(
            "import json, os, pathlib, sys\n"
            "pathlib.Path(sys.argv[1], f'torchrun-{os.environ[\"RANK\"]}').write_text(json.dumps(dict(os.environ)))\n"
        )
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        subprocess.run([*torchrun, str(script), str(tmp_path)], check=True, capture_output=True, env=dict(os.environ))
        stage.run(job("facts"))
        theirs_alone = {"MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE"}
        for rank in (0, 1):
            theirs = json.loads((tmp_path / f"torchrun-{rank}").read_text())
            ours = told(tmp_path, rank)["environ"]
            more = {"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME"}
            assert ours.keys() - more == theirs.keys() - more
            assert {name: ours[name] for name in theirs.keys() - theirs_alone} == {
                name: theirs[name] for name in theirs.keys() - theirs_alone
            }

    def test_a_rank_is_as_a_fresh_interpreter(self, stage: Stage, job: Callable[..., Job], tmp_path: Path) -> None:
        ended = stage.run(job("facts", processes=3, some="option", environment={"SOME_NAME": "value"}))
        assert statuses(ended) == [WELL] * 3
        for rank in range(3):
            found = told(tmp_path, rank)
            assert (found["rank"], found["processes"], found["options"]) == (rank, 3, {"some": "option"})
            assert found["environ"]["SOME_NAME"] == "value"
            assert found["folder"] == str(Path.cwd())
            assert found["stdin"] == ""
            assert found["leads_session"]
            assert (found["threads"], found["tasks"]) == (1, 1)
            assert found["pipes"] == []  # of the stage, the runner or another rank
            assert (tmp_path / f"rank-{rank}.out").read_text() == "said to stdout\n"
            assert (tmp_path / f"rank-{rank}.err").read_text() == "said to stderr\n"
            assert ended.ranks[rank].last_lines == ["said to stderr"]

    def test_the_folder_and_environment_are_those_of_the_moment(
        self, stage: Stage, job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("SET_AFTER_THE_STAGE", "1")
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        stage.run(job("facts"))
        found = told(tmp_path, 0)
        assert (found["folder"], found["environ"]["SET_AFTER_THE_STAGE"]) == (str(tmp_path), "1")
        assert found["threads"] == 2

    def test_a_job_takes_variables_away(
        self, stage: Stage, job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SET_BY_THE_USER", "1")
        stage.run(job("facts", environment={"SET_BY_THE_USER": None, "SOME_NAME": "value"}))
        found = told(tmp_path, 0)["environ"]
        assert "SET_BY_THE_USER" not in found
        assert found["SOME_NAME"] == "value"

    def test_no_two_ranks_or_jobs_draw_the_same(self, stage: Stage, job: Callable[..., Job], tmp_path: Path) -> None:
        drawn = []
        for _ in range(2):
            stage.run(job("facts"))
            drawn += [told(tmp_path, rank)["draws"] for rank in (0, 1)]
        for of_one_generator in zip(*drawn, strict=True):
            assert len(set(of_one_generator)) == 4

    def test_the_stage_has_imported_and_started_nothing(
        self, stage: Stage, job: Callable[..., Job], tmp_path: Path
    ) -> None:
        stage.run(job("facts"))
        found = told(tmp_path, 0)
        assert found["loaded"] == ["accelerate", "lightning"]
        assert (found["stage_tasks"], found["cuda"]) == (1, False)

    def test_broken_modules_are_left_to_the_script(
        self, job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "noisy.py").write_text("import os; print('hello'); os.write(1, b'hello'); raise SystemExit(1)")
        monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path}")
        with Stage(["noisy", "no_such_module"]) as stage:
            assert statuses(stage.run(job("nothing"))) == [WELL] * 2

    def test_modules_that_start_threads_are_left_to_the_ranks(
        self, job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "accelerate.py").write_text(
            "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        )
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
        with Stage(["accelerate"]) as stage:
            assert statuses(stage.run(job("facts"))) == [WELL] * 2
        found = told(tmp_path, 0)
        assert (found["loaded"], found["stage_tasks"], found["tasks"]) == ([], 1, 1)


class TestFrameworks:
    def test_ranks_meet(self, stage: Stage, job: Callable[..., Job], tmp_path: Path) -> None:
        assert statuses(stage.run(job("all_reduce", processes=4))) == [WELL] * 4
        assert [told(tmp_path, rank)["total"] for rank in range(4)] == [10_000.0] * 4

    def test_ddp_with_loaders_and_arithmetic_threads(
        self, stage: Stage, job: Callable[..., Job], tmp_path: Path
    ) -> None:
        ended = stage.run(job("train_ddp", threads=2, environment={"OMP_NUM_THREADS": "2"}))
        assert statuses(ended) == [WELL] * 2
        assert ended.left_behind == ()
        found = told(tmp_path, 0)
        assert found["threads"] == 2
        assert len(set(found["gradients"])) == 1

    def test_accelerate(self, stage: Stage, job: Callable[..., Job], tmp_path: Path) -> None:
        assert statuses(stage.run(job("train_accelerate"))) == [WELL] * 2
        assert told(tmp_path, 1) == {"processes": 2, "equal": True}

    def test_lightning(self, stage: Stage, job: Callable[..., Job], tmp_path: Path) -> None:
        assert statuses(stage.run(job("train_lightning"))) == [WELL] * 2
        assert told(tmp_path, 1) == {"before": 1, "world": 2, "steps": 2}


class TestHowRanksEnd:
    @pytest.mark.parametrize(
        ("value", "status", "lines"), [(None, 0, []), (0, 0, []), (3, 3, []), (-1, 255, []), ("words", 1, ["words"])]
    )
    def test_sys_exit(
        self, stage: Stage, job: Callable[..., Job], value: object, status: int, lines: list[str]
    ) -> None:
        ended = stage.run(job("leave", value=value))
        assert statuses(ended) == [WELL, (status, None, False)]
        assert ended.ranks[1].error is None
        assert ended.ranks[1].last_lines == lines
        assert ended.first_failed == (1 if status else None)

    def test_an_exception_comes_with_its_frames(self, stage: Stage, job: Callable[..., Job]) -> None:
        ended = stage.run(job("divide"))
        assert statuses(ended) == [WELL, (1, None, False)]
        assert (ended.first_failed, ended.out_of_time) == (1, False)
        error = ended.ranks[1].error
        assert error is not None
        assert (error["type"], error["message"]) == ("ZeroDivisionError", "division by zero")
        assert [frame["function"] for frame in error["frames"]] == ["divide", "end", "<lambda>"]
        assert error["frames"][-1]["text"].endswith("# the line that divides")
        assert error["frames"][-1]["path"] == str(ROOT / "tests/process/stage_mains.py")
        assert error["traceback"].startswith("Traceback (most recent call last):\n")
        assert ended.ranks[1].last_lines == error["traceback"].splitlines()

    def test_an_exception_that_cannot_be_printed(self, stage: Stage, job: Callable[..., Job]) -> None:
        error = stage.run(job("raise_nameless")).ranks[1].error
        assert error is not None
        assert error["type"] == f"{MAINS}.raise_nameless.<locals>.OddError"

    def test_a_main_that_is_not_there(self, stage: Stage, tmp_path: Path) -> None:
        ended = stage.run(Job(main="no_such_module:main", processes=1, folder=tmp_path, limit_s=60))
        assert ended.ranks[0].error is not None
        assert ended.ranks[0].error["type"] == "ModuleNotFoundError"

    def test_a_crash_says_where(self, stage: Stage, job: Callable[..., Job]) -> None:
        ended = stage.run(job("crash"))
        assert statuses(ended) == [WELL, (None, signal.SIGSEGV, False)]
        assert ended.first_failed == 1
        assert any(frame["text"].endswith("# the line that crashes") for frame in ended.ranks[1].stack)

    def test_a_killed_rank(self, stage: Stage, job: Callable[..., Job]) -> None:
        ended = stage.run(job("kill_itself"))
        assert statuses(ended) == [WELL, (None, signal.SIGKILL, False)]
        assert ended.first_failed == 1

    def test_the_last_lines_are_twenty(self, stage: Stage, job: Callable[..., Job]) -> None:
        ended = stage.run(job("talk"))
        assert statuses(ended) == [WELL, (5, None, False)]
        assert ended.ranks[1].last_lines == [f"line {line}" for line in range(10, 30)]

    def test_threads_are_joined_and_exit_functions_called(
        self, stage: Stage, job: Callable[..., Job], tmp_path: Path
    ) -> None:
        assert statuses(stage.run(job("threads_and_exit_functions", processes=1))) == [WELL]
        assert (tmp_path / "called-0").exists()
        assert (tmp_path / "joined-0").exists()

    def test_a_rank_that_hangs_shows_its_line(self, stage: Stage, job: Callable[..., Job]) -> None:
        ended = stage.run(job("hang", limit_s=3.0))
        assert ended.out_of_time
        assert ended.first_failed is None
        assert 3.0 <= ended.seconds < 15.0
        assert ended.ranks[0].ended_by_us is False
        hung = ended.ranks[1]
        assert (hung.status, hung.ended_by_us) == (None, True)
        assert [frame["function"] for frame in hung.stack] == ["hang", "end", "wait_for_ever"]
        assert hung.stack[-1]["text"] == "lock.acquire()  # waits in C code"

    def test_after_a_failure_the_others_have_the_grace(self, stage: Stage, job: Callable[..., Job]) -> None:
        ended = stage.run(job("divide_while_another_waits", grace_s=2.0))
        assert ended.first_failed == 1
        assert not ended.out_of_time
        assert 2.0 <= ended.seconds < 30.0
        assert [end.ended_by_us for end in ended.ranks] == [True, False]
        assert ended.ranks[0].stack[-1]["function"] == "wait_for_ever"


MISUSES = [
    "forks_and_both_go_on",
    "starts_a_program",
    "starts_a_deaf_program",
    "becomes_a_daemon",
    "starts_a_family",
]


class TestNothingStays:
    @pytest.mark.parametrize("how", MISUSES)
    def test_what_a_script_has_left_is_ended_and_named(
        self, stage: Stage, job: Callable[..., Job], tmp_path: Path, how: str
    ) -> None:
        ended = stage.run(job("misbehave", how=how))
        started = [pid for rank in (0, 1) for pid in told(tmp_path, rank)["started"]]
        assert gone(started, 0.0)
        assert statuses(ended) == [WELL] * 2
        named = {pid for pid, _ in ended.left_behind}
        if how == "forks_and_both_go_on":  # the children end by themselves, and what becomes of them is no rank's end
            assert named == set()
        else:
            assert named >= {pid for rank in (0, 1) for pid in told(tmp_path, rank)["started"][:-1]}

    @pytest.mark.parametrize("deaf", [False, True])
    @pytest.mark.parametrize("how", MISUSES)
    def test_nor_what_a_rank_has_started_that_must_be_ended(
        self, stage: Stage, job: Callable[..., Job], tmp_path: Path, how: str, deaf: bool
    ) -> None:
        os.mkfifo(tmp_path / "fifo")
        ended = stage.run(job("misbehave_and_wait", how=how, deaf=deaf, grace_s=0.0))
        *started, rank = told(tmp_path, 0)["started"]
        assert gone([*started, rank], 0.0)
        assert (ended.first_failed, ended.out_of_time) == (1, False)
        assert [end.ended_by_us for end in ended.ranks] == [True, False]
        free = started if how == "becomes_a_daemon" else []  # the others were ended with their rank
        assert [pid for pid, _ in ended.left_behind] == free
        assert ended.seconds < 15.0

    def test_a_script_that_kills_its_parent(self, stage: Stage, job: Callable[..., Job], tmp_path: Path) -> None:
        with pytest.raises(RunError, match="could not go on"):
            stage.run(job("kill_parent", processes=1))
        assert gone(told(tmp_path, 0)["started"], 0.0)
        assert statuses(stage.run(job("nothing"))) == [WELL] * 2

    def test_a_stage_that_is_killed_takes_all_along(
        self, own_stage: Stage, job: Callable[..., Job], mark: Callable[[], list[int]]
    ) -> None:
        own_stage.run(job("nothing"))
        assert own_stage._process is not None
        own_stage._process.kill()
        with pytest.raises(RunError, match="could not go on"):
            own_stage.run(job("nothing"))
        with pytest.raises(RunError, match="no stage"):
            own_stage.run(job("nothing"))

    @pytest.mark.parametrize("victim", ["owner", "stage", "runner"])
    def test_whoever_is_killed_all_below_ends(
        self, mark: Callable[[], list[int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, victim: str
    ) -> None:
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        with owner(tmp_path) as process, started(tmp_path) as ranks:
            runner = parent(ranks[0])
            pids = {"owner": process.pid, "stage": parent(runner), "runner": runner}
            everybody = [*ranks, *pids.values(), *mark()]
            os.kill(pids[victim], signal.SIGKILL)
            assert gone(everybody)

    def test_the_stage_does_what_an_owner_that_was_killed_would_have_done(
        self, mark: Callable[[], list[int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        with owner(tmp_path) as process, started(tmp_path) as ranks:
            everybody = [*ranks, parent(parent(ranks[0]))]
            process.kill()
            assert gone(everybody)
        assert (tmp_path / "stood-in").read_text() == "no rank was there any more"

    def test_ctrl_c_in_the_owner_ends_all_in_silence(
        self, mark: Callable[[], list[int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        with owner(tmp_path) as process, started(tmp_path):
            begin = time.monotonic()
            process.send_signal(signal.SIGINT)
            said, complaint = process.communicate(timeout=DEADLINE_S)
            assert time.monotonic() - begin < 10.0
        assert (said, complaint, process.returncode) == (b"interrupted\n", b"", 0)

    def test_a_stage_nobody_has_entered(self, job: Callable[..., Job]) -> None:
        with pytest.raises(RunError, match="no stage"):
            Stage().run(job("nothing"))


OWNER = """
import pathlib, sys
from squall.verify.stage import Job, Stage
folder = pathlib.Path(sys.argv[1])
with Stage() as stage:
    try:
        stage.run(Job(main="tests.process.stage_mains:hang_and_tell", options={"fifo": str(folder / "fifo")},
                      processes=2, folder=folder, limit_s=600,
                      without_owner="tests.process.stage_mains:stand_in"))
    except KeyboardInterrupt:
        print("interrupted")
"""


@contextlib.contextmanager
def owner(folder: Path) -> "Iterator[subprocess.Popen[bytes]]":
    os.mkfifo(folder / "fifo")
    command = [sys.executable, "-c", OWNER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def started(folder: Path) -> Iterator[list[int]]:
    """The ranks and what they have started, once all have said so."""
    fd = os.open(folder / "fifo", os.O_RDWR)
    try:
        said = b""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while said.count(b"\n") < 2:
            assert poll.poll(60_000)
            said += os.read(fd, 4096)
        yield [int(word) for word in said.split()]
    finally:
        os.close(fd)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
