"""`squall verify` and its twin for tests, with a verdict that is made up: flags, files, exit statuses, mistakes."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

import squall
from squall import verify
from squall.cli.main import main
from squall.cli.verify import JSON, JUNIT, PAGE
from squall.cli.verify import verify as verb
from squall.errors import InputError, RunError
from squall.verify.catalogue import CHECKS, NAMES
from squall.verify.finding import Verdict
from squall.verify.text import text
from squall.verify.values import to_json
from tests.verify.verdicts import FILES, HUNG, ONE_FAULT, hostile, ok


class Engine:
    """Stands in for `squall.verify.examine`: remembers what it is asked for and gives the verdict that it was given."""

    def __init__(self) -> None:
        self.verdict: Verdict | Exception = ok()
        self.asked: dict[str, Any] = {}
        self.says: list[str] = []

    def examine(self, script: str, arguments: Any = (), **options: Any) -> Verdict:
        self.asked = {"script": script, "arguments": arguments, **options}
        for word in self.says if options.get("progress") else []:
            options["progress"](word)
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return self.verdict


@pytest.fixture(autouse=True)
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text("print('never run')\n")
    found, module = Engine(), ModuleType("squall.verify.examining")
    module.examine = found.examine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "squall.verify.examining", module)
    return found


Say = Callable[..., str]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Say:
    def run(*arguments: str, status: int = 0) -> str:
        """What a command prints on standard output, or on standard error where it must; the other one is empty."""
        assert main(["verify", *arguments]) == status
        out, err = capsys.readouterr()
        assert (out if status == 2 else err) == ""
        return err if status == 2 else out

    return run


# -- what is printed and written ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("verdict", "status"), [(ok(), 0), (ONE_FAULT, 1), (HUNG, 1), (hostile(), 1)])
def test_a_verdict_is_printed_and_written_and_is_the_exit_status(
    verdict: Verdict, status: int, engine: Engine, said: Say
) -> None:
    engine.verdict = verdict
    assert said("train.py", status=status) == text(verdict, 100, FILES) + "\n"
    assert sorted(path.name for path in Path().iterdir()) == sorted(["train.py", *FILES])
    assert Path(PAGE).read_text().startswith("<!doctype html>")
    assert json.loads(Path(JSON).read_text()) == json.loads(json.dumps(to_json(verdict)))
    assert ElementTree.parse(JUNIT).getroot().tag == "testsuites"


def test_json_is_one_value_on_standard_output(engine: Engine, said: Say) -> None:
    engine.verdict = ONE_FAULT
    out = said("train.py", "--json", status=1)
    assert json.loads(out) == json.loads(json.dumps(to_json(ONE_FAULT)))
    assert out.count("\n") == 1
    assert Path(PAGE).is_file()


def test_files_go_where_they_are_wanted_and_take_the_place_of_older_ones(engine: Engine, said: Say) -> None:
    for _ in range(2):
        assert "out/new/verify.html  out/new/verify.json  out/new/verify.xml" in said("train.py", "--to", "out/new")
    assert sorted(path.name for path in Path("out/new").iterdir()) == sorted(FILES)
    assert not Path(PAGE).exists()


def test_a_verdict_whose_files_cannot_be_written_is_said_all_the_same(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(JSON).mkdir()
    engine.verdict = ONE_FAULT
    assert main(["verify", "train.py"]) == 2
    out, err = capsys.readouterr()
    assert out == text(ONE_FAULT, 100) + "\n"
    assert "verify.json cannot be written" in err


@pytest.mark.parametrize("name", FILES)
def test_files_that_were_not_written_here_are_not_written_over(name: str, engine: Engine, said: Say) -> None:
    Path(name).write_text('{"mine": "results"}')
    shown = said("train.py", status=2)
    assert f"{name} was not written by squall verify" in shown
    assert "--to" in shown
    assert engine.asked == {}
    assert [path.name for path in Path().glob("verify.*")] == [name]
    Path(name).write_text("")  # nothing is lost
    said("train.py")
    said("train.py")


def test_secrets_among_the_arguments_are_neither_shown_nor_written(engine: Engine, said: Say) -> None:
    engine.verdict = replace(ONE_FAULT, arguments=("--api-key", "geheim-4711", "--lr", "1"))
    shown = said("train.py", "--", "--api-key", "geheim-4711", "--lr", "1", status=1)
    assert engine.asked["arguments"] == ("--api-key", "geheim-4711", "--lr", "1")
    assert "--api-key HIDDEN --lr 1" in shown
    assert [text for text in (shown, *(Path(name).read_text() for name in FILES)) if "geheim" in text] == []
    with pytest.raises(AssertionError) as raised:
        verify.assert_right("train.py", ["--api-key", "geheim-4711"])
    assert "geheim" not in str(raised.value)


def test_numbers_of_processes_without_gpus_are_left_out(
    engine: Engine, said: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("squall.verify.devices.count", lambda: 2)
    shown = said("train.py")
    assert engine.asked["processes"] == (2,)
    assert "not run with 4 processes: this machine has 2 GPUs" in shown
    verdict = verify.assert_right("train.py")
    assert engine.asked["processes"] == (2,)
    assert [trouble.what for trouble in verdict.troubles] == ["fewer GPUs than processes"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_with_its_status(number: signal.Signals, engine: Engine, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys.modules["squall.verify.examining"], "examine", lambda *_, **__: signal.raise_signal(number))
    with pytest.raises(SystemExit) as left:
        verb("train.py")
    assert left.value.code == 128 + number


def test_an_error_of_the_engine_is_one_message(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.verdict = RunError("the stage died", [("found", "killed by SIGKILL")])
    assert main(["verify", "train.py"]) == 1
    assert capsys.readouterr().err.startswith("squall: the stage died")
    assert not Path(PAGE).exists()


def test_the_list_says_what_is_asked_and_where_it_comes_from(said: Say) -> None:
    shown = said("--list")
    firsts = [line for line in shown.splitlines() if not line.startswith(" ")]
    for check, line in zip(CHECKS, firsts, strict=True):
        assert line.split("   ")[0] == check.name
        assert line.endswith(check.asks)
    assert max(len(line) for line in shown.splitlines()) <= 120
    assert "Goyal et al. 2017, Remark 3; " in shown
    assert [check["name"] for check in json.loads(said("--list", "--json"))] == list(NAMES)


# -- flags -----------------------------------------------------------------------------------------------------------


def test_the_engine_is_asked_for_what_the_flags_say(engine: Engine, said: Say) -> None:
    said("train.py")
    progress = engine.asked.pop("progress")
    assert progress is None
    assert engine.asked == {
        "script": "train.py",
        "arguments": (),
        "processes": (2, 4),
        "epochs": 2,
        "steps": 24,
        "limit_s": 600.0,
        "checks": None,
        "resumes": False,
        "resume_with": (),
    }
    flags = ["--processes", "4,1,3", "--steps", "6", "--epochs", "3", "--limit", "90s", "--checks", "rate, epoch-order"]
    said("train.py", *flags, "--", "--lr", "0.1", "--json", "--", "x")
    assert engine.asked == {
        "script": "train.py",
        "arguments": ("--lr", "0.1", "--json", "--", "x"),
        "processes": (4, 1, 3),
        "epochs": 3,
        "steps": 6,
        "limit_s": 90.0,
        "checks": ("rate", "epoch order"),
        "resumes": False,
        "resume_with": (),
        "progress": None,
    }


def test_how_a_training_goes_on_is_asked_for_in_words_of_a_shell(engine: Engine, said: Say) -> None:
    said("train.py", "--resume", "--", "--out", "{folder}")
    assert (engine.asked["resumes"], engine.asked["resume_with"]) == (True, ())
    said("train.py", "--resume-with", "--from '{folder}/last one.pt'", "--", "--out", "{folder}")
    assert (engine.asked["resumes"], engine.asked["resume_with"]) == (True, ("--from", "{folder}/last one.pt"))


@pytest.mark.parametrize("target", ["digits", "mine.toml"])
def test_a_target_is_handed_on_as_it_was_given(target: str, engine: Engine, said: Say) -> None:
    Path("mine.toml").write_text("epochs = 1\n")
    said(target, "--", "lr=0.2")
    assert (engine.asked["script"], engine.asked["arguments"]) == (target, ("lr=0.2",))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["verify what?", "SCRIPT|TARGET"]),
        (["nosuch.py"], ["cannot read nosuch.py", "no such file"]),
        (["folder.py"], ["cannot read folder.py", "a folder"]),
        (["folder"], ["folder is no training", "a folder"]),
        (["train.sh"], ["train.sh is no training", "another file", ".py"]),
        (["digts"], ["no recipe called digts", "near", "digits"]),
        (["nosuch.toml"], ["cannot read nosuch.toml"]),
        (["train.py", "--processes", "2,2"], ["--processes 2,2", "different numbers from 1 to 64"]),
        (["train.py", "--processes", "0"], ["--processes 0"]),
        (["train.py", "--processes", "65"], ["--processes 65"]),
        (["train.py", "--processes", "two"], ["--processes two"]),
        (["train.py", "--processes", ""], ["--processes"]),
        (["train.py", "--steps", "1"], ["--steps"]),
        (["train.py", "--epochs", "1"], ["--epochs"]),
        (["train.py", "--limit", "5"], ["--limit 5", "90s, 10min, 1h"]),
        (["train.py", "--limit", "5ep"], ["--limit 5ep", "90s, 10min, 1h"]),
        (["train.py", "--limit", "0s"], ["--limit 0s"]),
        (["train.py", "--checks", "epoch oder"], ["--checks epoch oder", "Near: epoch order"]),
        (["train.py", "--checks", "xyzzy"], ["no such check. One of: gradient, accumulation"]),
        (["train.py", "--checks", ""], ["no such check"]),
        (["train.py", "--to", "train.sh"], ["--to train.sh", "train.sh is no folder"]),
        (["train.py", "--to", "train.sh/deep"], ["--to train.sh/deep", "is no folder"]),
        (["train.py", "--limit", "x", "--processes", "0", "--checks", "y"], ["3 mistakes", "--limit", "--checks y"]),
        (["train.py", "--lr", "0.1"], ["no such option", "--lr"]),
    ],
)
def test_a_mistake_is_one_message_with_status_2_before_anything_runs(
    arguments: list[str], words: list[str], engine: Engine, said: Say, tmp_path: Path
) -> None:
    Path("folder").mkdir()
    Path("folder.py").mkdir()
    Path("train.sh").touch()
    before = sorted(tmp_path.rglob("*"))
    shown = said(*arguments, status=2)
    assert shown.startswith("squall: ")
    assert shown.splitlines()[0].endswith("(exit 2)")
    assert [word for word in words if word.lower() not in shown.lower()] == []
    assert engine.asked == {}
    assert sorted(tmp_path.rglob("*")) == before


def test_it_is_not_run_inside_another_job(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="inside a job"):
        verb("train.py", None, "2", 2, 24, "1min")
    assert engine.asked == {}


# -- the terminal ----------------------------------------------------------------------------------------------------


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


def screens(monkeypatch: pytest.MonkeyPatch) -> tuple[Screen, Screen]:
    """Makes standard output and standard error terminals of 90 columns."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "90")
    out, err = Screen(), Screen()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    return out, err


def test_a_terminal_shows_outcomes_in_colour_as_wide_as_it_is(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.verdict = ONE_FAULT
    out, _ = screens(monkeypatch)
    assert main(["verify", "train.py"]) == 1
    assert "\x1b[1;31mFAIL\x1b[0m" in out.getvalue()
    assert re.sub(r"\x1b\[[\d;]+m", "", out.getvalue()) == text(ONE_FAULT, 90, FILES) + "\n"
    out, _ = screens(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["verify", "train.py"]) == 1
    assert out.getvalue() == text(ONE_FAULT, 90, FILES) + "\n"


def test_how_far_it_is_stands_on_one_line_that_is_gone_at_the_end(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.says = ["2 processes: epoch 1, step 3", f"4 processes: \x1b[2J{'long ' * 40}"]
    engine.verdict = RunError("the stage died")
    _, err = screens(monkeypatch)
    assert main(["verify", "train.py"]) == 1
    drawn, _, message = err.getvalue().partition("squall: the stage died")
    assert message
    assert "2 processes: epoch 1, step 3" in drawn
    assert "4 processes: \\x1b[2Jlong" in drawn
    assert "\x1b[2J" not in drawn
    assert seen(drawn).strip() == ""


def seen(written: str) -> str:
    """What is left on a screen: of the control sequences those that go up a line and that erase one are obeyed."""
    lines, at = [""], 0
    for part in re.findall(r"\x1b\[[?\d;]*[a-zA-Z]|[\n\r]|[^\x1b\n\r]+", written):
        if part == "\n":
            at += 1
            lines += [""] * (at + 1 - len(lines))
        elif part == "\x1b[1A":
            at -= 1
        elif part == "\x1b[2K":
            lines[at] = ""
        elif part[0] not in "\r\x1b":
            lines[at] += part
    return "\n".join(lines)


# -- in a project's own tests ---------------------------------------------------------------------------------------


def test_a_training_that_is_right_passes_and_gives_its_verdict(engine: Engine) -> None:
    engine.verdict = ok()
    assert verify.assert_right("train.py", ["--lr", "1"], processes=(3,), checks=["epoch-order"]) is engine.verdict
    assert engine.asked["script"] == "train.py"
    assert engine.asked["arguments"] == ["--lr", "1"]
    assert (engine.asked["processes"], engine.asked["checks"]) == ((3,), ("epoch order",))
    verify.assert_right("train.py")
    assert engine.asked["checks"] is None


def test_a_fault_fails_the_test_with_its_story(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    engine.verdict = ONE_FAULT
    with pytest.raises(AssertionError) as raised:
        squall.verify.assert_right("train.py")
    message = str(raised.value)
    assert "FAIL  epoch order" in message
    assert "+ 42       sampler.set_epoch(epoch)" in message
    assert "augmentation" not in message
    assert "\x1b" not in message


def test_a_check_may_be_allowed_to_fail(engine: Engine) -> None:
    engine.verdict = ONE_FAULT
    assert not verify.assert_right("train.py", allow=["epoch-order"]).ok
    with pytest.raises(AssertionError, match="FAIL  epoch order"):
        verify.assert_right("train.py", allow=["rate"])


def test_a_training_that_could_not_be_observed_fails_whatever_is_allowed(engine: Engine) -> None:
    engine.verdict = HUNG
    with pytest.raises(AssertionError, match="hung with 4 processes"):
        verify.assert_right("train.py", allow=NAMES)


def test_a_name_that_is_no_check_is_a_mistake(engine: Engine) -> None:
    with pytest.raises(InputError, match="2 mistakes in assert_right") as raised:
        verify.assert_right("train.py", allow=["epoch oder"], checks=["xyzzy"])
    assert "Near: epoch order" in str(raised.value)
    assert engine.asked == {}


# -- what is not loaded ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "import squall; squall.verify.assert_right; squall.verify.CHECKS",
        "from squall import verify; verify.assert_right",
        "from squall.cli.main import main; assert main(['verify', '--list']) == 0",
        "from squall.cli.main import main; assert main(['verify', 'train.py', '--limit', '1ep']) == 2",
    ],
)
def test_no_torch_is_loaded_for_names_lists_and_mistakes(code: str, tmp_path: Path) -> None:
    whole = f"import sys\n{code}\nsys.exit(99 if 'torch' in sys.modules else 0)"
    done = subprocess.run(
        [sys.executable, "-c", whole], capture_output=True, text=True, timeout=60, cwd=tmp_path, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr


def test_unknown_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match=r"squall\.verify.*nosuch"):
        verify.nosuch  # noqa: B018
    assert [name for name in verify.__all__ if not hasattr(verify, name)] == []
