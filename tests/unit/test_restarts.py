"""What follows when the processes of a run have ended: the decision, and the line that tells of it."""

import os
from pathlib import Path

import pytest
import typer

from squall.cli.processes import Span, number
from squall.cli.restarts import Again, Job, _advised, _line, after
from squall.engine.verdict import Outcome
from squall.errors import InputError
from squall.recipe import load

RESIZED = Outcome(os.EX_TEMPFAIL, "", "left")


def job(span: str | None = None, restarts: int = 3, passes: int = 8, folder: Path = Path("runs/x")) -> Job:
    chosen = Span.parse(span) if span else None
    return Job(begin=["b"], resume=["r"], folder=folder, threads=1, span=chosen, passes=passes, restarts=restarts)


def died(cause: str) -> Outcome:
    return Outcome(1, f"squall: {cause}", cause, "rank 1 of 4 was killed by SIGKILL")  # type: ignore[arg-type]


@pytest.mark.parametrize("cause", ["killed", "stuck", "lost"])
def test_a_run_goes_on_after_a_death_as_often_as_it_may(cause: str) -> None:
    assert after(died(cause), 4, 0, job(), None) == Again(4, 1)
    assert after(died(cause), 4, 2, job(), None) == Again(4, 3)
    assert after(died(cause), 4, 3, job(), None) is None
    assert after(died(cause), 4, 0, job(restarts=0), None) is None


@pytest.mark.parametrize("cause", ["finished", "failed", "left"])
def test_what_would_be_the_same_again_or_is_meant_is_the_end(cause: str) -> None:
    assert after(died(cause), 4, 0, job(), None) is None
    assert after(Outcome(143, "", "left"), 4, 0, job("2:4"), None) is None


def test_within_a_range_a_run_goes_on_with_one_process_fewer() -> None:
    assert after(died("killed"), 4, 0, job("2:4"), None) == Again(3, 1)
    assert after(died("stuck"), 3, 1, job("2:4"), None) == Again(2, 2)
    assert after(died("killed"), 2, 0, job("2:4"), None) == Again(2, 1)
    assert after(died("killed"), 4, 0, job("4"), None) == Again(4, 1)
    assert after(died("lost"), 4, 0, job("2:4"), None) == Again(4, 1)  # no process died


def test_a_wanted_number_is_brought_into_the_range_and_counts_for_nothing() -> None:
    assert after(RESIZED, 2, 3, job(), 5) == Again(5, 3)
    assert after(RESIZED, 2, 0, job("2:4"), 5) == Again(4, 0)
    assert after(RESIZED, 2, 0, job("2:4"), 1) == Again(2, 0)
    assert after(RESIZED, 2, 0, job("2"), 3) == Again(3, 0)
    assert after(RESIZED, 2, 0, job(passes=3), 8) == Again(3, 0)
    assert after(RESIZED, 2, 0, job(), None) is None  # whoever asked has changed their mind


def checkpoint(folder: Path, name: str) -> None:
    path = folder / "checkpoints" / name
    path.mkdir(parents=True)
    (path / "manifest.json").touch()


def test_a_line_says_what_died_and_how_the_run_goes_on(tmp_path: Path) -> None:
    assert "; going on from step 0 with" in _line(died("killed"), Again(3, 1), 0, job(folder=tmp_path))
    checkpoint(tmp_path, "step-00000900")
    checkpoint(tmp_path, "step-00001250")
    assert _line(died("killed"), Again(3, 1), 0, job(folder=tmp_path)) == (
        "squall: rank 1 of 4 was killed by SIGKILL; going on from step 1,250 with 3 processes (restart 1 of 3)"
    )
    assert _line(RESIZED, Again(1, 1), 1, job(folder=tmp_path)) == (
        "squall: resized; going on from step 1,250 with 1 process"
    )


def test_the_last_message_says_how_to_go_on_by_hand(tmp_path: Path) -> None:
    assert _advised(died("killed"), job(folder=tmp_path), 0) == "squall: killed"
    checkpoint(tmp_path, "step-00001250")
    assert _advised(died("killed"), job(folder=tmp_path), 3).splitlines() == [
        "squall: killed",
        "  restarts   3 of 3 used",
        f"checkpoint of step 1,250 is there: squall resume {tmp_path}",
    ]
    assert _advised(Outcome(2, "squall: a mistake", "failed"), job(folder=tmp_path), 0) == "squall: a mistake"
    assert _advised(Outcome(143, "", "left"), job(folder=tmp_path), 0) == ""


@pytest.mark.parametrize(("text", "span"), [("3", Span(3, 3)), ("2:4", Span(2, 4)), ("2:2", Span(2, 2))])
def test_numbers_of_processes_are_one_or_a_range(text: str, span: Span) -> None:
    assert Span.parse(text) == span
    assert Span.parse(str(span)) == span


@pytest.mark.parametrize("text", ["", "x", "0", "4:2", "1:", ":3", "1:2:3", "-1", "0:2"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        Span.parse(text)


def test_a_range_starts_with_what_the_machine_and_the_step_have(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load("digits")
    for cores, wanted in ((1, 2), (3, 3), (9, 4)):
        monkeypatch.setattr("squall.engine.machine.cores", lambda cores=cores: cores)
        assert number(Span(2, 4), recipe, 8, "cpu") == wanted
        assert number(Span(2, 9), recipe, 2, "cpu") == 2
        assert number(None, recipe, 8, "cpu") == min(cores, 8)
        assert number(Span(5, 5), recipe, 8, "cpu") == number(5, recipe, 8, "cpu") == 5
    with pytest.raises(InputError, match="9 processes are more than the 8 passes"):
        number(Span(9, 12), recipe, 8, "cpu")
