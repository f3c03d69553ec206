"""Which rank's error is shown."""

import os
import signal
import threading

import pytest

from squall.cluster.world import PeerMissingError
from squall.engine.report import Report, Reports, lost_peer, report_error, verdict
from squall.errors import InputError, RunError, UserCodeError
from squall.reduce.wire import PeerLostError

GLOO = "[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:25773: Connection reset by peer. This is typically"


def report(rank: int, seconds: float, *, lost: bool = False, status: int = 1, text: str = "", hint: str = "") -> Report:
    text = text or f"error of rank {rank}"
    return Report(rank, status, text, f"squall: {text}", hint, lost, seconds)


def test_an_own_error_explains_lost_connections_whoever_wrote_first() -> None:
    status, text = verdict([report(0, 1.0, lost=True), report(1, 1.2), report(2, 1.1, lost=True)], {}, 3, 1.5)
    assert status == 1
    assert text == "squall: error of rank 1\n  2 other ranks stopped in 0.3 s"


def test_the_earliest_own_error_is_shown_whatever_order_they_were_written_in() -> None:
    reports = [report(2, 5.0), report(0, 4.0), report(1, 4.5)]
    assert verdict(reports, {}, 3, 5.0)[1].startswith("squall: error of rank 0\n")


def test_an_error_that_all_ranks_share_is_shown_once_without_counting_the_others() -> None:
    reports = [report(rank, 1.0 + rank, text="too many processes") for rank in range(4)]
    assert verdict(reports, {}, 4, 6.0) == (1, "squall: too many processes")


def test_a_mistake_in_input_keeps_status_2_and_its_hint_last() -> None:
    status, text = verdict([report(0, 1.0, status=2, hint="see --fields")], {0: 2, 1: -15}, 2, 1.5)
    assert (status, text) == (2, "squall: error of rank 0\nsee --fields")


def test_the_number_of_stopped_ranks_stands_above_the_hint() -> None:
    _, text = verdict([report(0, 1.0, hint="resume: last")], {0: 1, 1: -15}, 2, 1.0)
    assert text.splitlines() == ["squall: error of rank 0", "  1 other rank stopped in 0.0 s", "resume: last"]


def test_a_killed_rank_explains_lost_connections() -> None:
    status, text = verdict([report(0, 1.0, lost=True)], {0: 1, 1: -9, 2: -15}, 3, 1.5)
    assert status == 1
    assert "rank 1 of 3 was killed by SIGKILL" in text
    assert "memory" in text
    assert "error of rank 0" in text


def test_an_own_error_explains_a_rank_that_the_agent_had_to_kill() -> None:
    assert verdict([report(0, 1.0)], {0: 1, 1: -9}, 2, 40.0)[1].startswith("squall: error of rank 0\n")


def test_a_rank_that_left_without_a_word_gives_its_exit_status() -> None:
    status, text = verdict([report(0, 1.0, lost=True)], {0: 1, 1: 7}, 2, 1.5)
    assert status == 7
    assert "rank 1 of 2 ended with exit status 7" in text


def test_lost_connections_alone_show_the_earliest() -> None:
    reports = [report(0, 2.0, lost=True), report(2, 1.0, lost=True)]
    assert "error of rank 2" in verdict(reports, {0: 1, 1: -15, 2: 1}, 3, 2.0)[1]


def test_a_rank_stopped_from_outside_is_named() -> None:
    assert "rank 1 of 2 was killed by SIGTERM" in verdict([], {1: -15}, 2, 1.0)[1]


def chained(outer: Exception, inner: Exception) -> Exception:
    try:
        try:
            raise inner
        except Exception as error:
            raise outer from error
    except Exception as error:
        return error


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (PeerLostError(1, "to sum", "for", "x"), True),
        (PeerMissingError("rank 0 waited"), True),
        (RuntimeError(GLOO), True),
        (chained(RunError("the step failed"), RuntimeError(GLOO)), True),
        (RuntimeError("shape mismatch"), False),
        (chained(RunError("the step failed"), ValueError("x")), False),
        (ConnectionResetError("Connection reset by peer"), False),
        (chained(UserCodeError("your code raised"), RuntimeError(GLOO)), False),
        (InputError("bad"), False),
    ],
)
def test_lost_connections_are_told_from_own_errors(error: Exception, lost: bool) -> None:
    assert lost_peer(error) is lost


def test_reports_hold_what_was_raised_in_order_of_writing_and_leave_no_descriptor() -> None:
    before = os.listdir("/proc/self/fd")
    with Reports() as reports:
        report_error(reports.path, InputError("2 mistakes", [("a", "b")], "see docs"), 1)
        report_error(reports.path, ZeroDivisionError("by zero"), 0)
        first, second = reports.read()
    assert os.listdir("/proc/self/fd") == before
    assert (first.rank, first.status, first.hint, first.headline) == (1, 2, "see docs", "2 mistakes")
    assert first.message.splitlines()[1:] == ["  a   b"]
    assert (second.rank, second.status) == (0, 1)
    assert "ZeroDivisionError: by zero" in second.message
    assert first.seconds <= second.seconds


def test_reports_of_many_writers_do_not_mix_and_a_torn_one_is_left_out() -> None:
    with Reports() as reports:
        threads = [
            threading.Thread(target=report_error, args=(reports.path, RunError(f"{rank}" * 5000), rank))
            for rank in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        fd = os.open(reports.path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, b'{"rank": 9, "sta')
        os.close(fd)
        assert {r.rank: r.headline for r in reports.read()} == {rank: f"{rank}" * 5000 for rank in range(8)}


def test_a_signal_number_becomes_its_name() -> None:
    assert "SIGSEGV" in verdict([], {0: -signal.SIGSEGV}, 1, 0.0)[1]
