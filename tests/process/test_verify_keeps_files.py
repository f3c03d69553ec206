"""A script under `squall verify` saves where it always saves; afterwards the user's files are as they were."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from squall.verify.observe.keeping import KEPT
from squall.verify.restoring import restore

SCRIPT = Path(__file__).parents[1] / "verify" / "troubles" / "saves.py"


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()
    }


def test_files_are_as_they_were_and_no_trial_sees_those_of_the_last(tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    for name in ("model.pt", "model.safetensors", "log.txt", "old.txt"):
        (work / name).write_text(f"the real {name}")
    before = state(work)
    done = subprocess.run(
        [sys.executable, "-m", "squall", "verify", str(SCRIPT), "-P", "2", "--to", str(out), "--limit", "60s"],
        cwd=work,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert state(work) == before
    assert not (work / "out").exists()


def test_what_cannot_be_removed_stays_and_what_was_there_comes_back_whole(tmp_path: Path) -> None:
    job, work = tmp_path / "job", tmp_path / "work"
    (job / KEPT).mkdir(parents=True)
    work.mkdir()
    changed, made = work / "changed.txt", work / "made"
    changed.write_text("new")
    made.mkdir()
    (made / "mine.txt").write_text("put there by somebody else")
    notes = [(changed, "file", False), (made, None, True), (work / "gone.txt", None, False)]
    for number, (path, was, folder) in enumerate(notes):
        note = job / KEPT / f"{number}.json"
        was_text = "null" if was is None else f'"{was}"'
        note.write_text(f'{{"path": "{path}", "was": {was_text}, "folder": {str(folder).lower()}, "order": {number}}}')
    (job / KEPT / "0.copy").write_text("old")
    assert restore(job) == [str(changed)]
    assert changed.read_text() == "old"
    assert (made / "mine.txt").exists()
    assert sorted(path.name for path in work.iterdir()) == ["changed.txt", "made"]
