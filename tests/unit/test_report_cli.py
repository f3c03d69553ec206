"""`squall report`: where the page goes, what is printed, and one clear error for each mistake."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from squall.cli.main import main
from squall.cli.report import labels
from tests.fabricated import Made


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def said(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    """Standard output of a command, or standard error where it must fail; the other one must be empty."""
    assert main(["report", *arguments]) == status
    out, err = capsys.readouterr()
    assert (err if status == 0 else out) == ""
    return out if status == 0 else err


def made(name: str, **more: object) -> Path:
    return Made(**more).write(Path("runs") / name)  # type: ignore[arg-type]


def test_the_page_of_one_run_lies_in_its_folder(capsys: pytest.CaptureFixture[str]) -> None:
    folder = made("one")
    out = said(capsys, "one")
    assert "run     runs/one\nwrote   runs/one/report.html: one page, " in out
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    assert said(capsys, "runs/one", "--to", "x.html").splitlines()[1].startswith("wrote   x.html")
    assert not list(Path().glob("*.partial"))


def test_the_page_of_several_runs_lies_here_and_each_counts_once(capsys: pytest.CaptureFixture[str]) -> None:
    made("one")
    made("two", seed=1)
    found = json.loads(said(capsys, "one", "two", "runs/one", "--json"))
    assert found["runs"] == ["runs/one", "runs/two"]
    assert found["file"] == "report.html"
    assert found["bytes"] == Path("report.html").stat().st_size


def test_last_is_a_run_that_goes_on_or_was_killed_too(capsys: pytest.CaptureFixture[str]) -> None:
    folder = made("begun", until=1, outcome=None)
    assert json.loads(said(capsys, "last", "--json"))["file"] == str(folder / "report.html")


def test_runs_of_one_name_are_told_apart_by_their_folders() -> None:
    assert labels([Path("/a/x/run"), Path("/a/y/run")]) == ["x/run", "y/run"]
    assert labels([Path("/a/one"), Path("/b/two")]) == ["one", "two"]
    assert labels([Path("/run")]) == ["run"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["missing argument"]),
        (["nosuch"], ["nosuch is no run", "one"]),
        (["runs/one/records.jsonl"], ["records.jsonl is no run"]),
        (["one", "--to", "page.txt"], ["--to page.txt", "a .html file", "--to page.html"]),
        (["one", "--to", "nowhere/page.html"], ["nowhere/page.html cannot be written", "No such file"]),
        (["one", "--to", "folder.html"], ["folder.html cannot be written", "Is a directory"]),
        (["one", "--live", "--to", "x.html"], ["--live and --to", "one at a time"]),
        (["one", "--port", "8000"], ["--port 8000", "--live"]),
        (["one", "--live", "--port", "99999"], ["--port", "65535"]),
    ],
)
def test_a_mistake_is_one_message_with_status_2_and_writes_nothing(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    made("one")
    Path("folder.html").mkdir()
    before = sorted(tmp_path.rglob("*"))
    text = said(capsys, *arguments, status=2)
    assert text.startswith("squall: ")
    assert text.splitlines()[0].endswith("(exit 2)")
    assert [word for word in words if word.lower() not in text.lower()] == []
    assert sorted(tmp_path.rglob("*")) == before


def test_a_port_in_use_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    made("one")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        text = said(capsys, "one", "--live", "--port", str(port), status=2)
    assert f"port {port} of 127.0.0.1 cannot be used" in text
    assert "in use" in text


def test_no_torch_is_loaded_for_a_page(tmp_path: Path) -> None:
    made("one")
    code = (
        "import sys; from squall.cli.main import main\n"
        "status = main(['report', 'one'])\n"
        "sys.exit(99 if 'torch' in sys.modules else status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_page_that_is_served_ends_cleanly_with_ctrl_c(tmp_path: Path) -> None:
    made("one")
    command = [sys.executable, "-m", "squall", "report", "one", "--live", "--port", "0", "--json"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        url = json.loads(server.stdout.readline())["url"]
        assert url.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(f"{url}data.json", timeout=20) as answer:
            assert json.load(answer)["title"] == "one: finished"
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0
        assert server.stdout.read() == ""
        assert server.stderr.read() == ""
