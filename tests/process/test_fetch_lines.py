"""Fetching over bad lines: a local server that cuts, stalls, redirects, knows no ranges and sends wrong bytes."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import io
import struct
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from squall.data import catalogue, fetch, sources
from squall.data.catalogue import PublicSet, RemoteFile
from squall.errors import InputError, RunError

FILES = {
    "train-images-idx3-ubyte.gz": struct.pack(">4i", 2051, 40, 28, 28) + np.random.default_rng(0).bytes(40 * 784),
    "train-labels-idx1-ubyte.gz": struct.pack(">2i", 2049, 40) + bytes(number % 10 for number in range(40)),
    "t10k-images-idx3-ubyte.gz": struct.pack(">4i", 2051, 10, 28, 28) + np.random.default_rng(1).bytes(10 * 784),
    "t10k-labels-idx1-ubyte.gz": struct.pack(">2i", 2049, 10) + bytes(range(10)),
}
FILES = {name: gzip.compress(content, mtime=0) for name, content in FILES.items()}
BIG = "train-images-idx3-ubyte.gz"


@dataclass
class Server:
    """What the server holds, what it does wrong (one entry a request, then nothing), and what it was asked."""

    files: dict[str, bytes]
    faults: list[str] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    knows_ranges: bool = True
    release: threading.Event = field(default_factory=threading.Event)
    url: str = ""


def handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rsplit("/", 1)[1]
            wanted = self.headers.get("Range", "")
            server.asked.append((self.path.lstrip("/"), wanted))
            fault = server.faults.pop(0) if server.faults and not self.path.startswith("/moved") else ""
            if fault.isdigit() or name not in server.files:
                self.send_error(int(fault or 404))
                return
            if fault == "redirect":
                self.send_response(302)
                self.send_header("Location", f"/moved/{name}")
                self.end_headers()
                return
            if fault == "loop":
                server.faults.append("loop")
                self.send_response(302)
                self.send_header("Location", self.path)
                self.end_headers()
                return
            content = server.files[name]
            if fault == "wrong":
                content = content[:-9] + bytes(9)
            if fault == "long":
                content += b"more"
            first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.knows_ranges else 0
            self.send_response(206 if first else 200)
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - first))
            self.end_headers()
            body = content[first:]
            if fault in ("cut", "stall"):
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                if fault == "stall":
                    server.release.wait(20)
                self.connection.close()
                return
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002

        def handle(self) -> None:
            # the client, or a fault, may have closed the line
            with contextlib.suppress(ConnectionError, ValueError):
                super().handle()

        def finish(self) -> None:
            with contextlib.suppress(ConnectionError, ValueError):
                super().finish()

    return Handler


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    state = Server(dict(FILES))
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler(state))
    state.url = f"http://127.0.0.1:{http.server_port}/"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    state.release.set()
    http.shutdown()
    http.server_close()
    thread.join()


def remote(files: dict[str, bytes]) -> tuple[RemoteFile, ...]:
    return tuple(RemoteFile(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items())


ARCHIVE = "cifar-10-binary.tar.gz"
MEMBERS = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]


def blank(number: int) -> bytes:
    """A file of CIFAR-10 whose images are all of one class and one grey."""
    return bytes([number]) * 30_730_000


def cifar_archive(extra: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as tar:
        members = {f"cifar-10-batches-bin/{name}": blank(number) for number, name in enumerate(MEMBERS)}
        for name, content in {**extra, **members}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture(autouse=True)
def small_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalogue with a MNIST of 50 images."""
    mnist = PublicSet("mnist", "small", "none", "idx", "https://127.0.0.1/", remote(FILES))
    monkeypatch.setattr(catalogue, "CATALOGUE", {**catalogue.CATALOGUE, "mnist": mnist})


def get(server: Server, folder: Path, name: str = "mnist", timeout: float = 5.0, **more: object) -> list[Path]:
    return fetch.fetch(name, folder, base_url=server.url, timeout=timeout, pause=0.0, **more)  # type: ignore[arg-type]


def assert_whole(folder: Path) -> None:
    """The files of the set, with their bytes, and nothing else."""
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES


def test_fetched_set_is_whole_and_readable(server: Server, tmp_path: Path):
    told: list[tuple[str, int, int]] = []
    paths = get(server, tmp_path / "sets" / "mnist", progress=lambda *news: told.append(news))
    assert [path.name for path in paths] == list(FILES)
    assert_whole(tmp_path / "sets" / "mnist")
    data = sources.load("idx", tmp_path / "sets" / "mnist", "train")
    assert len(data) == 40
    for name, content in FILES.items():
        heard = [done for file, done, size in told if file == name and size == len(content)]
        assert heard == sorted(heard)
        assert heard[0] == 0
        assert heard[-1] == len(content)


def test_second_fetch_asks_for_nothing(server: Server, tmp_path: Path):
    get(server, tmp_path)
    before = len(server.asked)
    get(server, tmp_path)
    assert len(server.asked) == before == 4


def test_damaged_file_is_fetched_again(server: Server, tmp_path: Path):
    get(server, tmp_path)
    (tmp_path / BIG).write_bytes(b"damaged")
    get(server, tmp_path)
    assert_whole(tmp_path)
    assert len(server.asked) == 5


@pytest.mark.parametrize("fault", ["cut", "stall"])
def test_line_that_ends_early_is_taken_up_where_it_ended(server: Server, tmp_path: Path, fault: str):
    server.faults = [fault]
    get(server, tmp_path, timeout=0.2)
    assert_whole(tmp_path)
    assert server.asked[:2] == [(BIG, ""), (BIG, f"bytes={len(FILES[BIG]) // 2}-")]


def test_server_without_ranges_starts_over(server: Server, tmp_path: Path):
    server.faults, server.knows_ranges = ["cut"], False
    get(server, tmp_path)
    assert_whole(tmp_path)


def test_part_of_an_earlier_fetch_is_used(server: Server, tmp_path: Path):
    (tmp_path / f"{BIG}.part").write_bytes(FILES[BIG][:1000])
    get(server, tmp_path)
    assert_whole(tmp_path)
    assert server.asked[0] == (BIG, "bytes=1000-")


@pytest.mark.parametrize("size", [1000, 200_000])
def test_bad_part_of_an_earlier_fetch_is_thrown_away(server: Server, tmp_path: Path, size: int):
    (tmp_path / f"{BIG}.part").write_bytes(bytes(size))
    get(server, tmp_path)
    assert_whole(tmp_path)
    assert (BIG, "") in server.asked


def test_range_that_the_server_refuses_starts_over(server: Server, tmp_path: Path):
    (tmp_path / f"{BIG}.part").write_bytes(FILES[BIG][:1000])
    server.faults = ["416"]
    get(server, tmp_path)
    assert_whole(tmp_path)
    assert [wanted for _, wanted in server.asked[:2]] == ["bytes=1000-", ""]


def test_redirect_is_followed_with_its_range(server: Server, tmp_path: Path):
    (tmp_path / f"{BIG}.part").write_bytes(FILES[BIG][:1000])
    server.faults = ["redirect"]
    get(server, tmp_path)
    assert_whole(tmp_path)
    assert server.asked[:2] == [(BIG, "bytes=1000-"), (f"moved/{BIG}", "bytes=1000-")]


def test_busy_server_is_asked_again(server: Server, tmp_path: Path):
    server.faults = ["503", "429", "cut", "500"]
    get(server, tmp_path)
    assert_whole(tmp_path)


def test_wrong_bytes_are_removed_and_both_sums_named(server: Server, tmp_path: Path):
    server.faults = ["wrong"]
    with pytest.raises(RunError, match="wrong bytes; it was removed") as error:
        get(server, tmp_path)
    rows = [text for _, text in error.value.rows]
    wrong = FILES[BIG][:-9] + bytes(9)
    assert rows[:2] == [f"sha256 {hashlib.sha256(content).hexdigest()}" for content in (FILES[BIG], wrong)]
    assert list(tmp_path.iterdir()) == []


def test_file_longer_than_published_is_refused(server: Server, tmp_path: Path):
    server.faults = ["long"]
    with pytest.raises(RunError, match="is not what it should be"):
        get(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_missing_file_is_said_at_once(server: Server, tmp_path: Path):
    del server.files[BIG]
    with pytest.raises(RunError, match="does not give the file") as error:
        get(server, tmp_path)
    assert "404" in error.value.text()
    assert len(server.asked) == 1
    assert list(tmp_path.iterdir()) == []


def test_endless_redirect_ends(server: Server, tmp_path: Path):
    server.faults = ["loop"]
    with pytest.raises(RunError):
        get(server, tmp_path)


def test_line_that_never_holds_gives_up_and_keeps_its_part(server: Server, tmp_path: Path):
    server.faults = ["cut"] * 3 + ["503"] * 5
    with pytest.raises(RunError, match="could not be fetched") as error:
        get(server, tmp_path)
    part = tmp_path / f"{BIG}.part"
    assert FILES[BIG].startswith(part.read_bytes())
    assert part.stat().st_size > len(FILES[BIG]) // 2
    assert "503 Service Unavailable, 5 times in a row" in error.value.text()
    assert "the next fetch goes on from here" in error.value.text()
    get(server, tmp_path)
    assert_whole(tmp_path)


def test_no_server_at_all_is_a_clear_error(server: Server, tmp_path: Path):
    with pytest.raises(RunError, match="could not be fetched") as error:
        fetch.fetch("mnist", tmp_path, base_url="http://127.0.0.1:1/", pause=0.0)
    assert "refused" in error.value.text()
    assert list(tmp_path.iterdir()) == []


def test_only_web_addresses_are_opened(tmp_path: Path):
    (tmp_path / BIG).write_bytes(FILES[BIG][:10])
    with pytest.raises(InputError, match="is no web address"):
        fetch.fetch("mnist", tmp_path / "mnist", base_url=f"file://{tmp_path}/")


def test_folder_that_cannot_be_made_is_an_error(server: Server, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        get(server, tmp_path / "file" / "mnist")


def test_second_fetch_at_the_same_time_is_refused(server: Server, tmp_path: Path):
    with (tmp_path / f"{BIG}.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another fetch is writing"):
            get(server, tmp_path)


def test_unknown_set_gets_the_nearest_name(tmp_path: Path):
    with pytest.raises(InputError, match="no public set named fashion_mnist") as error:
        fetch.fetch("fashion_mnist", tmp_path / "x")
    assert "fashion-mnist" in dict(error.value.rows)["near"]
    assert not (tmp_path / "x").exists()


def test_archive_gives_the_wanted_files_and_nothing_in_it_chooses_where_they_land(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    server.files = {ARCHIVE: cifar_archive({"../outside.bin": b"x", "../../data_batch_1.bin": b"y", "other.txt": b"z"})}
    sums = {name: hashlib.sha256(blank(number)).hexdigest() for number, name in enumerate(MEMBERS)}
    cifar = PublicSet("cifar10", "blank", "none", "cifar10", "https://127.0.0.1/", remote(server.files), sums)
    monkeypatch.setattr(catalogue, "CATALOGUE", {"cifar10": cifar})
    folder = tmp_path / "a" / "b" / "cifar10"
    paths = get(server, folder, "cifar10")
    assert paths == [folder / name for name in MEMBERS]
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(paths)  # nor is the archive kept
    sources.check("cifar10", folder)
    get(server, folder, "cifar10")
    assert len(server.asked) == 1


def test_shape_of_the_real_catalogue(monkeypatch: pytest.MonkeyPatch, real_data: Path):
    monkeypatch.undo()
    for name, public in catalogue.CATALOGUE.items():
        assert public.name == name
        assert public.base_url.startswith("https://")
        assert public.base_url.endswith("/")
        assert all(len(file.sha256) == 64 and file.size > 0 for file in public.files)
    for file in catalogue.CATALOGUE["fashion-mnist"].files:
        content = (real_data / "fashion-mnist" / file.name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.size, file.sha256)
