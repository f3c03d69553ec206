"""The user's files under `squall verify`: what ranks do to them is noted before, and undone afterwards."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from squall.verify.finding import Place, Trouble
from squall.verify.observe import journal, keeping
from squall.verify.observe.journal import ASIDE, JOURNAL, Journal, NotKeptError
from squall.verify.observe.keeping import Keeper
from squall.verify.restoring import is_all_back, restore
from squall.verify.troubles import of_files

_listening: list[Keeper] = []
sys.addaudithook(lambda event, arguments: _listening[-1]._hook(event, arguments) if _listening else None)


@contextmanager
def kept(keeper: Keeper) -> Iterator[None]:
    """What is done in here is done by a rank."""
    _listening.append(keeper)
    try:
        yield
    finally:
        _listening.pop()


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a script runs."""
    folder = tmp_path / "work"
    folder.mkdir()
    (tmp_path / "job").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in keeping._CACHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def job(work: Path) -> Path:
    return work.parent / "job"


@pytest.fixture
def rank(job: Path) -> Keeper:
    return Keeper(job, [])


def state(folder: Path) -> dict[str, Any]:
    """All that can be seen of a tree: contents, times, modes, links, and which names are of one file."""
    found: dict[str, Any] = {}
    inodes: dict[int, str] = {}
    for path in sorted(folder.rglob("*")):
        name, there = str(path.relative_to(folder)), path.lstat()
        if path.is_symlink():
            found[name] = ("link", os.readlink(path))
        elif path.is_dir():
            found[name] = ("folder", stat.S_IMODE(there.st_mode))
        else:
            first = inodes.setdefault(there.st_ino, name)
            found[name] = ("file", path.read_bytes(), there.st_mtime_ns, stat.S_IMODE(there.st_mode), first)
    return found


def tree(folder: Path) -> None:
    """A user's: files, folders, links."""
    (folder / "a" / "deep").mkdir(parents=True)
    (folder / "b").mkdir()
    for name in ("x", "a/x", "a/y", "a/deep/x", "b/x"):
        (folder / name).write_text(f"the real {name}")
        os.utime(folder / name, (1e9, 1e9))
    (folder / "a/y").chmod(0o600)
    os.link(folder / "x", folder / "other-name-of-x")
    (folder / "latest").symlink_to("a")
    (folder / "link").symlink_to("b/x")


# -- whatever is done, it is undone ----------------------------------------------------------------------------------


def write(path: Path, _: Path) -> None:
    path.write_text("new")


def append(path: Path, _: Path) -> None:
    with path.open("a") as file:
        file.write("more")


def rename(path: Path, other: Path) -> None:
    path.rename(other)


def link(path: Path, other: Path) -> None:
    os.link(path, other)


def symlink(path: Path, other: Path) -> None:
    other.symlink_to(path.name)


def truncate(path: Path, _: Path) -> None:
    os.truncate(path, 1)


DEEDS: list[Callable[[Path, Path], object]] = [
    write,
    append,
    rename,
    link,
    symlink,
    truncate,
    lambda path, _: path.unlink(),
    lambda path, _: path.mkdir(),
    lambda path, _: path.rmdir(),
    lambda path, _: shutil.rmtree(path),
    lambda path, other: shutil.move(path, other),
    lambda path, other: shutil.copytree(path, other),
]
PLACES = [
    "x",
    "a",
    "b",
    "c",
    "a/x",
    "a/y",
    "a/deep",
    "a/deep/x",
    "b/x",
    "b/y",
    "c/x",
    "latest",
    "latest/x",
    "link",
    "t",
]
DEED = st.tuples(st.sampled_from(DEEDS), st.sampled_from(PLACES), st.sampled_from(PLACES), st.integers(0, 1))
_numbers = itertools.count()


@settings(max_examples=300, deadline=None)
@given(st.lists(DEED, max_size=14))
def test_whatever_two_ranks_do_is_undone(tmp_path_factory: pytest.TempPathFactory, deeds: list[Any]) -> None:
    place = tmp_path_factory.getbasetemp() / f"deeds-{next(_numbers)}"
    job, work = place / "job", place / "work"
    job.mkdir(parents=True)
    tree(work)
    before = state(work)
    here = Path.cwd()
    os.chdir(work)
    try:
        ranks = [Keeper(job, []), Keeper(job, [])]
        for deed, path, other, number in deeds:
            with kept(ranks[number]), suppress(OSError, shutil.Error, RecursionError):
                deed(Path(path), Path(other))
    finally:
        os.chdir(here)
    restored = restore(job)
    assert restored.left == ()
    after = state(work)
    assert {name: _but_names(values) for name, values in after.items()} == {
        name: _but_names(values) for name, values in before.items()
    }
    assert is_all_back(job)
    again = restore(job)
    assert (again.changed, state(work)) == ((), after)
    shutil.rmtree(place)


def _but_names(values: Any) -> Any:
    """A file that was removed comes back as one of its own."""
    return values[:4] if values[0] == "file" else values


# -- what scripts do, one thing each ---------------------------------------------------------------------------------


def rmtree(work: Path) -> None:
    shutil.rmtree(work / "a")


def stage_and_rename(work: Path) -> None:
    (work / "tmp-checkpoint").mkdir()
    (work / "tmp-checkpoint" / "x").write_text("new")
    (work / "tmp-checkpoint").rename(work / "checkpoint-5")
    shutil.rmtree(work / "a")  # the oldest one goes


def rename_write_remove_rename(work: Path) -> None:
    (work / "a").rename(work / "old")
    (work / "old" / "x").write_text("new")
    shutil.rmtree(work / "old")
    (work / "c").mkdir()
    (work / "c" / "y").write_text("new")
    (work / "c").rename(work / "old")
    (work / "a").mkdir()
    (work / "a" / "x").write_text("new")
    (work / "a").rename(work / "c")


def latest(work: Path) -> None:
    (work / "checkpoint-5").mkdir()
    (work / "latest").unlink()
    (work / "latest").symlink_to("checkpoint-5")


def write_through_a_link(work: Path) -> None:
    (work / "link").write_text("new")
    (work / "latest" / "x").write_text("new")


def folder_becomes_file(work: Path) -> None:
    shutil.rmtree(work / "a")
    (work / "a").write_text("new")


def memory_map(work: Path) -> None:
    mapped = np.memmap(work / "a" / "x", dtype=np.uint8, mode="r+")
    mapped[:3] = 0
    mapped.flush()


def write_to_another_name(work: Path) -> None:
    os.link(work / "a" / "x", work / "name")
    (work / "name").write_text("new")


def write_to_one_of_two_names(work: Path) -> None:
    (work / "x").write_text("new")
    (work / "x").unlink()


def relative_to_a_descriptor(work: Path) -> None:
    fd = os.open(work / "a", os.O_RDONLY)
    os.rename("x", "z", src_dir_fd=fd, dst_dir_fd=fd)
    os.remove("y", dir_fd=fd)
    os.mkdir("new", dir_fd=fd)
    os.symlink("x", "other", dir_fd=fd)
    os.link("z", "name", src_dir_fd=fd, dst_dir_fd=fd)
    os.close(fd)


STORIES = [
    rmtree,
    stage_and_rename,
    rename_write_remove_rename,
    latest,
    write_through_a_link,
    folder_becomes_file,
    memory_map,
    write_to_another_name,
    write_to_one_of_two_names,
    relative_to_a_descriptor,
]


@pytest.mark.parametrize("story", STORIES)
def test_what_scripts_do_is_undone(story: Callable[[Path], None], work: Path, job: Path, rank: Keeper) -> None:
    tree(work)
    before = state(work)
    with kept(rank):
        story(work)
    assert state(work) != before
    assert restore(job).left == ()
    after = state(work)
    if story is write_to_one_of_two_names:  # it was removed, and is a file of its own now
        before, after = [{name: _but_names(values) for name, values in one.items()} for one in (before, after)]
    assert after == before


def test_a_file_that_is_written_over_keeps_its_other_names(work: Path, job: Path, rank: Keeper) -> None:
    elsewhere = work.parent / "elsewhere"
    (work / "x").write_text("the real one")
    os.link(work / "x", elsewhere)
    with kept(rank):
        (work / "x").write_text("new")
    restore(job)
    assert elsewhere.read_text() == "the real one"
    assert elsewhere.stat().st_ino == (work / "x").stat().st_ino


def test_a_staged_checkpoint_costs_no_copies(work: Path, job: Path, rank: Keeper) -> None:
    with kept(rank):
        for step in range(3):
            (work / "tmp").mkdir()
            (work / "tmp" / "model").write_text("new")
            (work / "tmp").rename(work / f"checkpoint-{step}")
            shutil.rmtree(work / f"checkpoint-{step}")
    assert [path.name for path in (job / ASIDE).iterdir()] == [JOURNAL]
    restore(job)
    assert list(work.iterdir()) == []


def test_a_rename_that_fails_makes_no_file_known(work: Path, job: Path, rank: Keeper, monkeypatch: Any) -> None:
    tree(work)
    before = state(work)
    (work / "a" / "x").touch()
    shutil.rmtree(work / "b")
    before = state(work)
    with kept(rank):
        (work / "a" / "x").write_text("new")
        rank._rename(str(work / "a"), str(work / "b"))  # and then it does not happen
    (work / "b").mkdir()
    (work / "b" / "x").write_text("the user's own")
    before["b"], before["b/x"] = state(work)["b"], state(work)["b/x"]
    with kept(rank):
        (work / "b" / "x").write_text("new")
    assert restore(job).left == ()
    assert state(work) == before


# -- writers that Python does not hear of ----------------------------------------------------------------------------


@pytest.fixture
def doors(rank: Keeper, monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[Path], object]]:
    """Ways to write into a file, all bound before the keeper came."""
    import safetensors.numpy
    import torch
    from safetensors.torch import save_file, save_model

    save = torch.save
    net = torch.nn.Linear(2, 2)
    traced, script = torch.jit.trace(net, torch.zeros(1, 2)), torch.jit.script(net)
    function = torch.jit.trace(torch.sin, torch.zeros(1))
    for place, name in (
        (torch._C, "PyTorchFileWriter"),
        *((getattr(torch.jit, name), "save") for name in ("ScriptModule", "RecursiveScriptModule", "ScriptFunction")),
        (safetensors.torch, "serialize_file"),
        (safetensors.numpy, "serialize_file"),
    ):
        monkeypatch.setattr(place, name, getattr(place, name))
    rank._ask_at_doors()
    return {
        "torch.save": lambda path: save(net.state_dict(), path),
        "torch.save, by name": lambda path: save(net.state_dict(), f=str(path)),
        "torch.jit.save": lambda path: torch.jit.save(traced, path),
        "a script's save": lambda path: script.save(path),
        "a function's save": lambda path: torch.jit.save(function, str(path)),
        "safetensors.torch.save_file": lambda path: save_file(net.state_dict(), path),
        "safetensors.torch.save_model": lambda path: save_model(net, str(path)),
        "safetensors.numpy.save_file": lambda path: safetensors.numpy.save_file({"x": np.zeros(2)}, path),
        "np.save": lambda path: np.save(path.open("wb"), np.zeros(3)),
        "tofile": lambda path: np.zeros(3).tofile(path),
    }


@pytest.mark.filterwarnings("ignore")
def test_writers_are_asked_at_their_door(
    doors: dict[str, Callable[[Path], object]], work: Path, job: Path, rank: Keeper
) -> None:
    for name in doors:
        (work / name).write_text(f"the real one of {name}")
    before = state(work)
    for name, door in doors.items():
        with kept(rank):
            door(work / name)
        assert state(work)[name] != before[name], name
    restore(job)
    assert state(work) == before


# -- what cannot be kept is not touched ------------------------------------------------------------------------------


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_that_cannot_be_copied_is_not_written_over(
    work: Path, job: Path, rank: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "x").write_text("the real one")
    monkeypatch.setattr(journal.shutil, "copy2", no_space)
    for deed in (write, append, truncate, lambda path, _: path.unlink(), lambda path, other: path.rename(other)):
        with kept(rank), pytest.raises(NotKeptError, match=r"/x \(0\.0 MB\) cannot be put aside: No space left"):
            deed(work / "x", work / "y")
    assert (work / "x").read_text() == "the real one"
    restored = restore(job)
    assert restored.refused == ((str(work / "x"), 12, "No space left on device"),)
    assert (restored.left, is_all_back(job)) == ((), True)


def test_room_is_looked_for_before_a_copy_is_begun(
    work: Path, job: Path, rank: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (work / "big").open("wb") as file:
        file.truncate(300_000_000)
    few = shutil.disk_usage(work)._replace(free=200_000_000)
    monkeypatch.setattr(journal.shutil, "disk_usage", lambda _: few)
    with kept(rank), pytest.raises(NotKeptError, match=r"300\.0 MB.*only 200\.0 MB are free"):
        np.memmap(work / "big", mode="r+")
    assert [path.name for path in (job / ASIDE).iterdir()] == [JOURNAL]
    small = work / "small"
    small.write_text("there is room for this")
    with kept(rank):
        small.write_text("new")
    restore(job)
    assert small.read_text() == "there is room for this"


def test_the_verdict_says_which_file_and_what_to_do(job: Path) -> None:
    place = Place(path="train.py", line=3)
    crashed = Trouble(what="crashed", says="train.py crashed", place=place)
    restored = restore(job).__class__(refused=(("/data/x.bin", 3_000_000_000, "No space left on device"),))
    (trouble,) = of_files("train.py", restored, 2, [crashed])
    assert (trouble.what, trouble.fatal, trouble.place) == ("file not kept", True, place)
    assert ("/data/x.bin", "3.0 GB: No space left on device") in trouble.rows
    assert any("TMPDIR=" in text for _, text in trouble.rows)
    (swallowed,) = of_files("train.py", restored, 2, [])  # the script has gone on, and could be observed
    assert not swallowed.fatal


def test_whoever_comes_second_waits_until_the_copy_is_whole(
    work: Path, job: Path, rank: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "x").write_text("the real one")
    copying, go = threading.Event(), threading.Event()
    copy2 = shutil.copy2

    def slow(*arguments: Any, **options: Any) -> Any:
        copying.set()
        assert go.wait(60)
        return copy2(*arguments, **options)

    monkeypatch.setattr(journal.shutil, "copy2", slow)
    done: list[str] = []

    def second(keeper: Keeper, name: str) -> None:
        keeper.keep(str(work / "x"))
        done.append(name)

    first = threading.Thread(target=second, args=(rank, "first"))
    first.start()
    assert copying.wait(60)
    others = [threading.Thread(target=second, args=(keeper, "later")) for keeper in (rank, Keeper(job, []))]
    for other in others:
        other.start()
    others[0].join(0.2)
    assert done == []
    go.set()
    for thread in (first, *others):
        thread.join(60)
    assert sorted(done) == ["first", "later", "later"]
    assert len((job / ASIDE / JOURNAL).read_text().splitlines()) == 1


def test_half_a_note_of_a_rank_that_was_killed_is_none(work: Path, job: Path, rank: Keeper) -> None:
    (work / "x").write_text("the real x")
    (work / "y").write_text("the real y")
    with kept(rank):
        (work / "x").write_text("new")
    with (job / ASIDE / JOURNAL).open("ab") as file:
        file.write(b' {"path": "/half')
    with kept(Keeper(job, [])):
        (work / "y").write_text("new")
    restore(job)
    assert [(work / name).read_text() for name in "xy"] == ["the real x", "the real y"]


# -- putting back ----------------------------------------------------------------------------------------------------


def test_one_that_cannot_be_put_back_keeps_no_other(
    work: Path, job: Path, rank: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        (work / name).write_text(f"the real {name}")
    with kept(rank):
        for name in "abc":
            (work / name).write_text("new")
    replace = Path.replace

    def fails(path: Path, target: Path) -> Path:
        if target.name == "b":
            raise OSError(errno.EIO, "Input/output error")
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fails)
        restored = restore(job)
    ((path, why, lies),) = restored.left
    assert (path, why) == (str(work / "b"), "Input/output error")
    assert Path(lies).read_text() == "the real b"
    assert [(work / name).read_text() for name in "abc"] == ["the real a", "new", "the real c"]
    assert sorted(path.name for path in work.iterdir()) == ["a", "b", "c"]
    assert not is_all_back(job)
    assert restore(job).left == ()  # once it can be
    assert (work / "b").read_text() == "the real b"
    assert is_all_back(job)


def test_after_a_kill_in_the_midst_nothing_is_undone_twice(work: Path, job: Path, rank: Keeper) -> None:
    (work / "a").mkdir()
    (work / "a" / "x").write_text("the real one")
    with kept(rank):
        (work / "a").rename(work / "b")
        (work / "a").mkdir()
        (work / "a" / "x").write_text("new")
    assert restore(job).left == ()
    assert restore(job).left == ()
    assert (work / "a" / "x").read_text() == "the real one"


def test_what_somebody_else_has_put_into_a_new_folder_stays_and_is_told(work: Path, job: Path, rank: Keeper) -> None:
    with kept(rank):
        (work / "made").mkdir()
    (work / "made" / "mine.txt").write_text("put there by somebody else")
    restored = restore(job)
    assert (restored.stay, restored.left) == ((str(work / "made"),), ())
    assert (work / "made" / "mine.txt").exists()


def test_what_lies_beyond_a_link_that_came_later_is_not_touched(work: Path, job: Path, rank: Keeper) -> None:
    (work / "a").mkdir()
    (work / "a" / "x").write_text("the real one")
    with kept(rank), suppress(OSError):
        (work / "c" / "x").mkdir()  # fails: there is no c
    with kept(rank):
        (work / "c").symlink_to("a")
    restore(job)
    assert state(work) == {"a": ("folder", 0o755), "a/x": state(work)["a/x"]}


# -- where new files stay --------------------------------------------------------------------------------------------


def test_new_files_elsewhere_stay_and_are_told(work: Path, job: Path, rank: Keeper) -> None:
    scratch = work.parent / "scratch"
    scratch.mkdir()
    (scratch / "log").write_text("the real one")
    with kept(rank):
        (scratch / "last.pt").write_text("new")
        (scratch / "log").write_text("new")
        (scratch / "gone").write_text("new")
        (scratch / "gone").unlink()
        (work.parent / "home" / ".tool").mkdir()
        (work.parent / "home" / ".tool" / "settings").write_text("new")
        (work / "mine").write_text("new")
    restored = restore(job)
    assert restored.stay == (str(scratch / "last.pt"),)
    assert (scratch / "log").read_text() == "the real one"
    assert (work.parent / "home" / ".tool" / "settings").exists()
    assert list(work.iterdir()) == []
    (trouble,) = of_files("train.py", restored, 2, [])
    assert not trouble.fatal
    assert ("new", str(scratch / "last.pt")) in trouble.rows
    assert any("{folder}" in text for _, text in trouble.rows)


@pytest.mark.parametrize("inside", [False, True])
def test_caches_are_left_alone_also_in_the_home_folder(
    inside: bool, work: Path, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = work.parent / "home"
    cache = home / ".cache" / "hub"
    cache.mkdir(parents=True)
    (cache / "old").write_text("old")
    monkeypatch.chdir(cache if inside else home)
    with kept(Keeper(job, [])):
        (cache / "old").write_text("new")
        (cache / "download").write_text("new")
        (home / ".tool").write_text("new")
    restore(job)
    assert (cache / "old").read_text() == ("old" if inside else "new")
    assert (cache / "download").exists() != inside
    assert (home / ".tool").exists()


def test_the_trial_s_own_folders_are_left_alone(work: Path, job: Path) -> None:
    own = work / "own"
    own.mkdir()
    (own / "x").write_text("old")
    with kept(Keeper(job, [own])):
        (own / "x").write_text("new")
        (own / "x").rename(own / "y")
        (work / "in").mkdir()
        (work / "in").rename(own / "in")
        (job / "rank-0.jsonl").write_text("trace")
    notes = [json.loads(line) for line in (job / ASIDE / JOURNAL).read_text().splitlines()]
    assert {note["path"] for note in notes} == {str(work / "in")}
    restore(job)
    assert sorted(path.name for path in own.iterdir()) == ["y"]


def test_a_place_is_where_a_path_leads_and_a_descriptor_is_none(work: Path) -> None:
    (work / "a").mkdir()
    (work / "link").symlink_to("a")
    assert keeping._place("link/x/../y", follow=True) == str(work / "a" / "y")
    assert keeping._place("link") == str(work / "link")
    assert keeping._place("link/") == str(work / "link")
    assert keeping._place(b"link/x") == str(work / "a" / "x")
    assert keeping._place(Path("link"), follow=True) == str(work / "a")
    assert keeping._place(".") == str(work)
    for nothing in (3, None, "null\0", object()):
        assert keeping._place(nothing) is None


def test_a_journal_that_is_gone_lets_nothing_be_written(work: Path, job: Path, rank: Keeper) -> None:
    (work / "x").write_text("the real one")
    shutil.rmtree(job)
    with kept(rank), pytest.raises(NotKeptError):  # by something that has outlived its trial
        (work / "x").write_text("new")
    with pytest.raises(FileNotFoundError):
        Journal(job, str(work))
