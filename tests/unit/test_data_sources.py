"""Names of sets, where they lie, and what packed files give up."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from squall.data import packed, sources
from squall.errors import InputError


def test_flag_wins_over_environment_wins_over_here():
    assert sources.data_root(Path("a"), "b") == Path("a")
    assert sources.data_root(None, "b") == Path("b")
    assert sources.data_root(None, "") == sources.data_root(None) == Path("data")


def test_set_lies_under_its_root_or_its_name():
    assert sources.set_folder(Path("d"), "fashion-mnist", "idx") == Path("d/fashion-mnist")
    assert sources.set_folder(Path("d"), None, "cifar10") == Path("d/cifar10")
    assert sources.set_folder(Path("d"), "/elsewhere/set", "idx") == Path("/elsewhere/set")
    assert sources.set_folder(Path("d"), None, "digits") is None


@pytest.mark.parametrize(
    "call", [lambda name: sources.load(name, None, "train"), lambda name: sources.check(name, None)]
)
def test_unknown_set_gets_the_nearest_names(call):
    with pytest.raises(InputError, match="no data set named cifar100") as error:
        call("cifar100")
    assert dict(error.value.rows)["near"] == "cifar10"
    assert "digits idx cifar10 imagefolder" in dict(error.value.rows)["one of"]


def test_set_without_its_folder_is_an_error():
    with pytest.raises(InputError, match=r"data\.name=cifar10 needs a folder"):
        sources.load("cifar10", None, "train")
    sources.check("digits", None)


def test_unpacking_stops_at_the_limit(tmp_path: Path):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(bytes(50_000_000)))
    got = packed.unpack(path, 1000)
    assert (got.state, len(got.data)) == ("too long", 1000)


def test_cut_stream_gives_what_stands_before_the_cut(tmp_path: Path):
    content = bytes(range(256)) * 4000
    path = tmp_path / "some.gz"
    path.write_bytes(gzip.compress(content, compresslevel=0)[:500_000])
    got = packed.unpack(path, len(content))
    assert got.state == "cut short"
    assert content.startswith(got.data)
    assert len(got.data) > 490_000


def test_end_of_a_file_tells_its_size(tmp_path: Path):
    path = tmp_path / "some.gz"
    path.write_bytes(gzip.compress(bytes(1000)))
    assert packed.has_whole_end(path, 1000)
    assert not packed.has_whole_end(path, 999)
    path.write_bytes(path.read_bytes()[:-1])
    assert not packed.has_whole_end(path, 1000)
