"""What `squall verify` sees to beside the training: requests to stop, trackers, secrets, GPUs, copies that are left."""

from __future__ import annotations

import errno
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from squall.errors import RunError
from squall.verify import devices, trackers, troubles
from squall.verify.devices import fitting
from squall.verify.masking import masked, masked_line
from squall.verify.observe.journal import ASIDE
from squall.verify.observe.keeping import Keeper
from squall.verify.program import Program
from squall.verify.requests import requests
from squall.verify.stage import Ended, Job, RankEnd
from squall.verify.trials import Trials

# -- requests to stop ------------------------------------------------------------------------------------------------


@pytest.fixture
def handlers() -> Iterator[list[int]]:
    """Numbers of the signals that came to the handlers that were there before; SIGTERM's raises, SIGHUP's does not."""
    came: list[int] = []

    def leave(number: int, frame: object) -> None:
        came.append(number)
        raise SystemExit(128 + number)

    before = [
        signal.signal(number, handler)
        for number, handler in ((signal.SIGTERM, leave), (signal.SIGHUP, lambda number, _: came.append(number)))
    ]
    yield came
    for number, handler in zip((signal.SIGTERM, signal.SIGHUP), before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "ends"),
    [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt), (signal.SIGHUP, KeyboardInterrupt)],
)
def test_a_request_breaks_off_what_is_heard_and_nothing_else(
    number: signal.Signals, ends: type[BaseException], handlers: list[int]
) -> None:
    done = []
    with pytest.raises(ends), requests() as asked:  # noqa: PT012
        try:
            with asked.heard():
                done.append("begun")
                signal.raise_signal(number)
                done.append("went on")
        finally:
            for again in (number, signal.SIGTERM, signal.SIGINT):
                signal.raise_signal(again)
            done.append("put back")
    assert done == ["begun", "put back"]
    assert handlers == ([] if number == signal.SIGINT else [number])


def test_a_request_that_came_before_is_heard_and_one_that_came_after_ends_it(handlers: list[int]) -> None:
    done = []
    with pytest.raises(SystemExit), requests() as asked:  # noqa: PT012
        signal.raise_signal(signal.SIGTERM)
        try:
            with asked.heard():
                done.append("begun")
        finally:
            done.append("put back")
    with pytest.raises(SystemExit), requests() as asked:  # noqa: PT012
        with asked.heard():
            done.append("whole")
        signal.raise_signal(signal.SIGTERM)
        done.append("put back")
    assert done == ["put back", "whole", "put back"]


def test_an_error_is_stronger_than_a_request(handlers: list[int]) -> None:
    with pytest.raises(RunError), requests() as asked:  # noqa: PT012
        try:
            with asked.heard():
                signal.raise_signal(signal.SIGTERM)
        finally:
            raise RunError("could not be put back")


def test_handlers_are_as_before_and_what_is_ignored_stays_so(handlers: list[int]) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with requests() as asked, asked.heard():
        signal.raise_signal(signal.SIGHUP)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    done = []

    def elsewhere() -> None:
        with requests() as asked, asked.heard():
            done.append(True)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert done == [True]


# -- a trial ---------------------------------------------------------------------------------------------------------


class Stage:
    """Stands in for a stage: what it is asked to run writes over a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.job: Job | None = None

    def run(self, job: Job) -> Ended:
        self.job = job
        Keeper(job.folder, []).keep(str(self.path))
        self.path.write_text("new")
        ends = RankEnd(rank=0, status=0, signal=None, ended_by_us=False, error=None, stack=[], last_lines=[])
        return Ended(ranks=(ends,), seconds=1.0, out_of_time=False, first_failed=None, left_behind=())


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    for name in ("work", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "work" / "x").write_text("the real one")
    return Stage(tmp_path / "work" / "x")


def test_copies_that_could_not_be_put_back_stay_and_it_is_said_where(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    trials = Trials(Program("train.py"), stage, 2, 24, 60.0, lambda text: None)  # type: ignore[arg-type]
    (tmp_path / "work" / "train.py").write_text("pass")
    with monkeypatch.context() as patch, pytest.raises(RunError, match="1 of your files could not be put") as raised:  # noqa: PT012
        patch.setattr(Path, "replace", fails)
        trials.run(1)
    (folder,) = (tmp_path / "tmp").glob("squall-verify-*")
    ((path, text),) = raised.value.rows
    assert (path, text.split(";")[0]) == (str(stage.path), "Read-only file system")
    assert str(folder / ASIDE) in raised.value.hint
    assert Path(text.split("lies in ")[1]).read_text() == "the real one"
    trials.run(1)
    assert list((tmp_path / "tmp").glob("squall-verify-*")) == [folder]


def test_a_job_keeps_trackers_at_home_and_says_who_stands_in(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "work" / "train.py").write_text("pass")
    Trials(Program("train.py"), stage, 2, 24, 60.0, lambda text: None).run(1)  # type: ignore[arg-type]
    assert stage.path.read_text() == "the real one"
    assert stage.job is not None
    assert stage.job.environment["WANDB_MODE"] == "offline"
    assert stage.job.environment["WANDB_DIR"] == str(stage.job.folder)
    assert stage.job.without_owner == "squall.verify.restoring:restore"


# -- trackers, secrets, GPUs -----------------------------------------------------------------------------------------


def test_trackers_are_offline_unless_they_are_off(tmp_path: Path) -> None:
    told = trackers.offline({"WANDB_MODE": "online", "MLFLOW_TRACKING_URI": "http://mine"}, tmp_path)
    assert (told["WANDB_MODE"], told["NEPTUNE_MODE"], told["COMET_START_ONLINE"]) == ("offline", "offline", "0")
    assert told["MLFLOW_TRACKING_URI"] == (tmp_path / "mlruns").as_uri()
    assert told["MLFLOW_EXPERIMENT_ID"] is None
    off = {"WANDB_MODE": "disabled", "NEPTUNE_MODE": "debug", "COMET_MODE": "DISABLED"}
    assert off.items() <= trackers.offline(off, tmp_path).items()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("--api-key abc --lr 0.1", "--api-key HIDDEN --lr 0.1"),
        ("--hf_token=abc wandb.key=abc x", "--hf_token=HIDDEN wandb.key=HIDDEN x"),
        ("DB_PASSWORD=abc python -m x --secret-id abc", "DB_PASSWORD=HIDDEN python -m x --secret-id HIDDEN"),
        ("--use-auth-token --lr 0.1", "--use-auth-token --lr 0.1"),
        ("--db postgres://me:abc@host/x", "--db postgres://me:HIDDEN@host/x"),
        ("--max-tokens 512 --tokenizer gpt2 --key-dim 64", "--max-tokens 512 --tokenizer gpt2 --key-dim 64"),
        ("keys/train.py token", "keys/train.py token"),
    ],
)
def test_values_that_are_named_secrets_are_masked(words: str, found: str) -> None:
    assert " ".join(masked(words.split())) == found
    assert masked_line(words) == found


def test_commands_of_left_processes_and_last_lines_are_masked() -> None:
    ends = RankEnd(
        rank=0, status=2, signal=None, ended_by_us=False, error=None, stack=[], last_lines=["unknown: --token abc"]
    )
    left = ((7, "server --password 'two abc words'"), (8, "odd 'quote --api-key abc"))
    found = troubles.troubles(
        "train.py", Ended(ranks=(ends,), seconds=1.0, out_of_time=False, first_failed=0, left_behind=left), None, 60.0
    )
    assert {one.what for one in found} == {"ended early", "left processes behind"}
    assert "abc" not in str(found)


def test_numbers_for_which_there_is_no_gpu_are_left_out_and_it_is_said() -> None:
    assert fitting((2, 4), 0) == ((2, 4), ())
    assert fitting((2, 4), 4) == ((2, 4), ())
    assert fitting((2, 4), 1) == ((2, 4), ())  # a script may leave it alone
    numbers, (trouble,) = fitting((4, 2, 8), 2)
    assert numbers == (2,)
    assert trouble.says == "not run with 4 and 8 processes: this machine has 2 GPUs"
    assert "CUDA_VISIBLE_DEVICES=" in str(trouble.rows)
    assert not trouble.fatal


def test_a_crash_on_too_few_gpus_names_the_way_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = [
        RankEnd(rank=rank, status=rank, signal=None, ended_by_us=False, error=None, stack=[], last_lines=[])
        for rank in range(2)
    ]
    ended = Ended(ranks=tuple(ends), seconds=1.0, out_of_time=False, first_failed=1, left_behind=())
    for gpus in (0, 1, 2):
        monkeypatch.setattr(devices, "count", lambda gpus=gpus: gpus)
        (trouble,) = troubles.troubles("train.py", ended, None, 60.0)
        assert ("CUDA_VISIBLE_DEVICES=" in str(trouble.rows)) == (gpus == 1)
