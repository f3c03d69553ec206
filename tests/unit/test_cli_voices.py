"""Which rank says an error, where torchrun or srun started the ranks: one voice for one mistake, none is lost."""

from __future__ import annotations

import json
import time
import weakref
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from squall.cli import voices
from squall.cli.main import main
from squall.cli.voices import Word, defers_to
from squall.cluster.place import Place, find
from squall.cluster.world import meet
from squall.errors import DivergedError, InputError, RunError, UserCodeError
from squall.reduce.wire import PeerLostError
from tests.jobs import torchrun_job


def own(rank: int, mark: str = "a", status: int = 1) -> Word:
    return Word(rank, mark, status, lost=False)


def echo(rank: int) -> Word:
    return Word(rank, f"lost by {rank}", 1, lost=True)


@pytest.mark.parametrize(
    ("words", "speakers"),
    [
        ([own(0), own(1), own(2)], [0]),
        ([own(0), own(1, "b"), own(2)], [0, 1]),
        ([echo(0), own(1), echo(2)], [1]),
        ([echo(0), own(1), own(2)], [1]),
        ([own(0), echo(1), own(2, "b")], [0, 2]),
        ([echo(0), echo(1), echo(2)], [0]),
    ],
)
def test_one_voice_for_one_mistake(words: list[Word], speakers: list[int]) -> None:
    found = []
    for word in words:
        heard = {other.rank: other for other in words if other is not word}
        if defers_to(word, heard, late=True) is word:
            found.append(word.rank)
    assert found == speakers


def test_a_rank_waits_for_the_ranks_below_it_until_it_is_late() -> None:
    assert defers_to(own(0), {}, late=False) == own(0)
    assert defers_to(own(2), {1: own(1, "b")}, late=False) is None
    assert defers_to(own(2), {0: echo(0), 1: own(1, "b")}, late=False) == own(2)
    assert defers_to(own(2), {1: own(1, "b")}, late=True) == own(2)
    assert defers_to(own(2), {1: own(1)}, late=False) == own(1)


def test_a_lost_connection_waits_for_the_error_behind_it() -> None:
    assert defers_to(echo(0), {1: echo(1)}, late=False) is None
    assert defers_to(echo(0), {1: echo(1)}, late=True) == echo(0)
    assert defers_to(echo(1), {0: echo(0)}, late=True) == echo(0)
    assert defers_to(echo(0), {2: own(2, status=2)}, late=False) == own(2, status=2)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (InputError("a", [("found", "5 of 7")]), InputError("a", [("found", "6 of 7")]), True),
        (InputError("a", [("found", "x")]), InputError("a", [("found", "y")]), False),
        (
            UserCodeError("KeyError at train[3], rank 0", [("KeyError", "'x'")]),
            UserCodeError("KeyError at train[40], rank 1"),
            True,
        ),
        (DivergedError("nan in step 3"), DivergedError("nan in step 3"), True),
        (RunError("a"), InputError("a"), False),
    ],
)
def test_errors_that_differ_in_numbers_only_are_one(first: Exception, second: Exception, same: bool) -> None:
    assert (Word.of(first, 0).mark == Word.of(second, 1).mark) == same


def test_a_word_knows_status_and_lost_peers() -> None:
    assert Word.of(InputError("a"), 1).status == 2
    assert Word.of(KeyError("a"), 1) == Word(1, "KeyError: 'a'", 1, lost=False)
    assert Word.of(PeerLostError(1, "to sum", "for", "x"), 0).lost


# -- through a store -----------------------------------------------------------------------------------------------

Become = Callable[[int], None]


@pytest.fixture
def become(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Become]:
    """Makes this process a rank of three that torchrun started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(voices, "PATIENCE_S", 0.3)
    monkeypatch.setattr(voices, "_ECHO_S", 0.3)
    with torchrun_job(3) as become:
        yield become


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "digits", "workers=4"],
        ["train", "digits", "global_batch_size=32"],  # two passes for three processes
        ["train", "digits", "--processes", "2"],
        ["train", "digits", "--nosuch"],
        ["eval", "nosuch"],
    ],
)
def test_what_all_ranks_find_is_said_by_the_first(
    become: Become, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert said(capsys, *arguments).startswith("squall: ")
    for rank in (1, 2):
        become(rank)
        assert said(capsys, *arguments) == ""


def test_what_one_rank_finds_is_said_with_its_rank(become: Become, capsys: pytest.CaptureFixture[str]) -> None:
    become(1)
    text = said(capsys, "train", "cifar10", "--data", "nowhere")
    assert text.splitlines()[0].split("  ")[0] == "squall: there is no folder nowhere/cifar10, rank 1 of 3"
    assert text.splitlines()[0].endswith("(exit 2)")
    assert "squall data fetch cifar10" in text


def test_another_mistake_than_the_first_ranks_is_said_too(become: Become, capsys: pytest.CaptureFixture[str]) -> None:
    assert "workers=4" in said(capsys, "train", "digits", "workers=4")
    become(1)
    assert "mine.toml, rank 1 of 3" in said(capsys, "train", "mine.toml")


def test_an_error_that_nobody_foresaw_keeps_its_traceback_and_names_its_rank(
    become: Become, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("squall.cli.main._run", lambda _: 1 // 0)
    for rank, starts in ((0, "squall: rank 0 failed\nTraceback"), (1, "")):
        become(rank)
        assert main([]) == 1
        assert capsys.readouterr().err.startswith(starts)
    monkeypatch.setattr("squall.cli.main._run", lambda _: [][1])
    assert main([]) == 1
    text = capsys.readouterr().err
    assert text.startswith("squall: rank 1 of 3 failed\nTraceback")
    assert text.endswith("IndexError: list index out of range\n")


def test_a_lost_rank_takes_the_status_of_the_error_behind_it(
    become: Become, capsys: pytest.CaptureFixture[str]
) -> None:
    become(1)
    assert voices.say(InputError("a"), find_place(), "mine") == 2
    become(0)
    assert voices.say(PeerLostError(1, "to sum", "for", "x"), find_place(), "an echo") == 2
    assert capsys.readouterr().err == "mine\n"


def find_place() -> Place:
    place = voices.job()
    assert place is not None
    return place


def test_where_nobody_holds_the_store_a_rank_speaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(voices, "PATIENCE_S", 0.2)
    environ = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    assert voices.say(InputError("a"), find({**environ, "MASTER_PORT": "9"}), "mine") == 2
    assert capsys.readouterr().err == "mine\n"


def test_a_rank_that_started_again_does_not_hear_the_words_of_the_first_attempt(
    become: Become, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for attempt, ranks in (("0", (0, 1)), ("1", (1,))):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        for rank in ranks:
            become(rank)
            voices.say(InputError("a"), find_place(), f"rank {rank}, attempt {attempt}")
    assert capsys.readouterr().err == "rank 0, attempt 0\nrank 1, attempt 1\n"


def test_a_rank_stays_until_the_error_is_said(become: Become, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun ends all ranks when the first leaves."""
    become(1)
    store = meet(find_place(), 1.0)
    word = {"rank": 0, "mark": Word.of(InputError("a"), 0).mark, "status": 2, "lost": False}
    store.set("word/0", json.dumps(word))
    monkeypatch.setattr(voices, "_ECHO_S", 0.4)
    start = time.monotonic()
    assert voices.say(InputError("a"), find_place(), "") == 2
    assert time.monotonic() - start >= 0.4
    monkeypatch.setattr(voices, "_ECHO_S", 60.0)  # it would be waited for, were the error not said
    store.set("said/0", "")
    start = time.monotonic()
    assert voices.say(InputError("a"), find_place(), "") == 2
    assert time.monotonic() - start < 60
    store.wait(["left/1"], timedelta(seconds=1))


class Connection:
    """Stands for what a rank holds of the others."""


def test_a_rank_that_fails_lets_its_connections_go(become: Become) -> None:
    """Else the ranks that wait for it would wait until it leaves, which waits for them."""
    alive: list[weakref.ref[Connection]] = []

    def fails() -> None:
        connection = Connection()
        alive.append(weakref.ref(connection))
        try:
            raise KeyError("gooseneck")
        except KeyError as error:
            raise UserCodeError(f"your code raised KeyError beside {connection}") from error

    try:
        fails()
    except UserCodeError as error:
        voices.say(error, find_place(), "")
        assert alive[0]() is None


def test_what_the_chosen_rank_could_not_say_is_said_by_another(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The launcher may end the rank that was about to speak: rather twice than never."""

    class Gone:
        def __init__(self, *_: object) -> None: ...

        def leave(self, own: Word) -> None: ...

        def choose(self, own: Word) -> Word:
            return Word(0, own.mark, 2, lost=False)

        def part(self, own: Word, chosen: Word) -> bool:
            return False

    monkeypatch.setattr(voices, "_Words", Gone)
    place = find(
        {
            "RANK": "1",
            "WORLD_SIZE": "2",
            "LOCAL_RANK": "1",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "1",
        }
    )
    assert voices.say(InputError("a mistake"), place, "squall: a mistake") == 2
    assert capsys.readouterr().err == "squall: a mistake\n"
