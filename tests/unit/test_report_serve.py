"""The page that follows a job: loopback only, GET only, the page and its data only, nothing made anew in vain."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from squall.errors import InputError
from squall.records import Stepped
from squall.report import Live, Reader
from tests.fabricated import Made, write_lines


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Made(until=2, outcome=None).write(tmp_path / "run")


@pytest.fixture
def live(run: Path) -> Iterator[Live]:
    server = Live([Reader(run)], port=0)
    thread = threading.Thread(target=server.serve)
    thread.start()
    yield server
    server.stop()
    thread.join()


def ask(live: Live, path: str = "/", method: str = "GET", **headers: str) -> http.client.HTTPResponse:
    """The answer, its body read into `body`."""
    port = urlsplit(live.url).port
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    answer.body = answer.read()  # type: ignore[attr-defined]
    connection.close()
    return answer


def test_the_page_and_its_data_are_served(live: Live) -> None:
    page = ask(live)
    assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert b'data-live="data.json"' in page.body
    found = json.loads(ask(live, "/data.json").body)
    assert found["title"] == "run: killed"
    assert not found["running"]
    assert "learning" in [section["id"] for section in found["sections"]]


def test_the_data_is_sent_again_only_when_it_changed(live: Live, run: Path) -> None:
    first = ask(live, "/data.json")
    tag = first.headers["ETag"]
    again = ask(live, "/data.json", If_None_Match=tag)
    assert (again.status, again.body) == (304, b"")
    live._built = float("-inf")  # as if it were old
    write_lines(run / "records.jsonl", [Stepped(24, 2, 128, 0.5, 0.1, 9.0)])
    later = ask(live, "/data.json", If_None_Match=tag)
    assert later.status == 200
    assert "25 of 72 steps" in json.loads(later.body)["head"]


def test_data_that_took_long_to_make_is_not_made_at_each_question(live: Live, run: Path) -> None:
    live.data()
    live._cost = 3600.0
    write_lines(run / "records.jsonl", [Stepped(24, 2, 128, 0.5, 0.1, 9.0)])
    assert "24 of 72 steps" in json.loads(live.data())["head"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8765", "LOCALHOST", "[::1]:9", "[::1]"])
def test_the_names_of_loopback_are_answered(live: Live, host: str) -> None:
    assert ask(live, "/data.json", Host=host).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "10.0.0.1", "", "[::2]"]
)
def test_other_names_are_refused_as_dns_rebinding_would_send_them(live: Live, host: str) -> None:
    answer = ask(live, "/data.json", Host=host)
    assert answer.status == 403
    assert b"sections" not in answer.body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
def test_nothing_but_get_is_answered(live: Live, method: str) -> None:
    answer = ask(live, "/", method)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET")


@pytest.mark.parametrize("path", ["/records.jsonl", "/../records.jsonl", "/..%2frecords.jsonl", "/data.json/", "/x"])
def test_nothing_but_the_page_and_its_data_is_there(live: Live, path: str) -> None:
    assert ask(live, path).status == 404


def test_answers_may_not_be_framed_guessed_kept_or_read_from_elsewhere(live: Live) -> None:
    headers = ask(live).headers
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in headers


def test_it_listens_on_loopback_only(live: Live) -> None:
    assert live._server.socket.getsockname()[0] == "127.0.0.1"


def test_a_port_in_use_is_an_error_and_without_a_wish_another_is_taken(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} of 127.0.0.1 cannot be used"):
            Live([Reader(run)], port)
        monkeypatch.setattr("squall.report.serve.PORT", port)
        other = Live([Reader(run)])
        assert urlsplit(other.url).port != port
        other._server.server_close()
