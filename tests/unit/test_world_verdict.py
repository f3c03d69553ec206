"""Which rank's error is shown, and what its end is taken for."""

import os
import signal
import threading
from pathlib import Path

import pytest

from squall.cluster.world import PeerMissingError
from squall.engine.report import Report, Reports, lost_peer, report_error
from squall.engine.verdict import Exit, Facts, Outcome, stopped, verdict
from squall.errors import InputError, RunError, UserCodeError
from squall.reduce.wire import PeerLostError

GLOO = "[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:25773: Connection reset by peer. This is typically"
LATE = "[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 20000ms for recv operation to complete"


def report(rank: int, seconds: float, *, lost: bool = False, status: int = 1, text: str = "", hint: str = "") -> Report:
    text = text or f"error of rank {rank}"
    return Report(rank, status, text, f"squall: {text}", hint, lost, seconds)


def late(rank: int, seconds: float, peer: int | None, waited: str = "20 s for it to exchange partial sums") -> Report:
    return Report(rank, 1, "lost", "squall: lost", "", True, seconds, late=True, peer=peer, waited=waited)


def told(rank: int, code: int = -signal.SIGKILL, seconds: float = 30.0) -> Exit:
    """The end of a rank that the launcher had told to."""
    return Exit(rank, code, seconds, told=True)


def end(processes: int, exits: dict[int, int] | list[Exit], *reports: Report, **known) -> Outcome:
    """The outcome of ends at second 1 unless they say when."""
    if isinstance(exits, dict):
        exits = [Exit(rank, code, 1.0) for rank, code in exits.items()]
    return verdict(Facts(processes, exits, reports, **known))


def test_a_job_whose_ranks_all_end_well_has_nothing_to_say() -> None:
    assert end(2, {0: 0, 1: 0}) == Outcome(0, "", "finished", "")


def test_an_own_error_explains_lost_connections_whoever_wrote_first() -> None:
    reports = [report(0, 1.0, lost=True), report(1, 1.2), report(2, 1.1, lost=True)]
    outcome = end(3, [Exit(0, 1, 1.1), Exit(1, 1, 1.5), Exit(2, 1, 1.2)], *reports)
    assert (outcome.status, outcome.cause) == (1, "failed")
    assert outcome.message == "squall: error of rank 1\n  2 other ranks stopped in 0.3 s"


def test_the_earliest_own_error_is_shown_whatever_order_they_were_written_in() -> None:
    outcome = end(3, {0: 1, 1: 1, 2: 1}, report(2, 5.0), report(0, 4.0), report(1, 4.5))
    assert outcome.headline == "error of rank 0"


def test_an_error_that_all_ranks_share_is_shown_once_without_counting_the_others() -> None:
    reports = [report(rank, 1.0 + rank, text="too many processes") for rank in range(4)]
    outcome = end(4, dict.fromkeys(range(4), 1), *reports)
    assert (outcome.status, outcome.message) == (1, "squall: too many processes")


def test_a_mistake_in_input_keeps_status_2_and_its_hint_last() -> None:
    outcome = end(2, [Exit(0, 2, 1.0), told(1)], report(0, 1.0, status=2, hint="see --fields"))
    assert (outcome.status, outcome.message) == (2, "squall: error of rank 0\nsee --fields")


def test_the_number_of_stopped_ranks_stands_above_the_hint() -> None:
    outcome = end(2, [Exit(0, 1, 1.0), told(1, seconds=5.0)], report(0, 1.0, hint="resume: last"))
    assert outcome.message.splitlines() == [
        "squall: error of rank 0",
        "  1 other rank stopped in 4.0 s",
        "resume: last",
    ]


def test_a_killed_rank_explains_lost_connections_and_shows_its_last_lines() -> None:
    outcome = end(
        3,
        [Exit(1, -9, 1.0), Exit(0, 1, 1.1), told(2)],
        report(0, 1.0, lost=True),
        tails={0: ["of rank 0"], 1: [f"line {i}" for i in range(9)]},
        logs={1: Path("run/logs/rank-1.log")},
    )
    assert (outcome.status, outcome.cause) == (1, "killed")
    assert outcome.headline == "rank 1 of 3 was killed by SIGKILL"
    assert [line.rstrip() for line in outcome.message.splitlines()][1:] == [
        "  often        the machine ran out of memory: dmesg says so",
        "  last lines   line 4",
        "               line 5",
        "               line 6",
        "               line 7",
        "               line 8",
        "  log          run/logs/rank-1.log",
        "  rank 0       error of rank 0",
    ]


def test_what_is_known_of_memory_takes_the_place_of_a_guess() -> None:
    message = end(1, {0: -9}, memory="the kernel killed it: its control group is out of memory").message
    assert message.splitlines()[1].split(maxsplit=1) == [
        "found",
        "the kernel killed it: its control group is out of memory",
    ]
    assert "often" not in message


def test_a_kill_explains_even_an_error_that_does_not_look_like_a_lost_connection_if_it_came_first() -> None:
    assert end(2, [Exit(1, -9, 0.9), Exit(0, 1, 1.1)], report(0, 1.0)).cause == "killed"
    assert end(2, [Exit(1, -9, 1.1), Exit(0, 1, 1.2)], report(0, 1.0)).cause == "failed"


def test_an_abort_never_explains_an_own_error() -> None:
    """Native libraries abort a process that has lost a peer, maybe before the peer has said its error."""
    assert end(2, [Exit(1, -signal.SIGABRT, 0.9), Exit(0, 1, 1.1)], report(0, 1.0)).headline == "error of rank 0"
    assert end(2, [Exit(1, -signal.SIGABRT, 0.9), told(0)]).headline == "rank 1 of 2 was killed by SIGABRT"


def test_an_own_error_explains_a_rank_that_the_launcher_had_to_kill() -> None:
    assert end(2, [Exit(0, 1, 1.1), told(1)], report(0, 1.0)).headline == "error of rank 0"


def test_a_rank_that_left_without_a_word_gives_its_exit_status() -> None:
    outcome = end(2, {0: 1, 1: 7}, report(0, 1.0, lost=True))
    assert (outcome.status, outcome.cause) == (7, "failed")
    assert outcome.headline == "rank 1 of 2 ended with exit status 7"


def test_lost_connections_alone_show_the_earliest() -> None:
    outcome = end(3, [Exit(0, 1, 2.0), Exit(2, 1, 1.1), told(1)], report(0, 2.0, lost=True), report(2, 1.0, lost=True))
    assert "error of rank 2" in outcome.message
    assert (outcome.cause, outcome.headline) == ("lost", "rank 2 of 3 lost a connection")


def test_a_rank_stopped_from_outside_is_named() -> None:
    assert end(2, {1: -15}).headline == "rank 1 of 2 was killed by SIGTERM"


def test_signals_have_names_or_numbers() -> None:
    assert "SIGSEGV" in end(1, {0: -signal.SIGSEGV}).message
    assert "signal 40" in end(1, {0: -40}).message


def test_an_interpreters_own_dump_is_shown_as_a_place_and_not_as_lines() -> None:
    dump = [
        "reading shard 7",
        "Fatal Python error: Segmentation fault",
        "Thread 0x00007f3a256adb80 (most recent call first):",
        '  File "/lib/threading.py", line 9 in wait',
        "Current thread 0x00007f3a256adb81 (most recent call first):",
        '  File "/home/me/photos.py", line 31 in __getitem__',
        '  File "/home/me/photos.py", line 12 in <module>',
        "Thread 0x00007f3a256adb82 (most recent call first):",
        '  File "/lib/queue.py", line 7 in get',
    ]
    message = end(1, {0: -signal.SIGSEGV}, tails={0: dump}).message
    assert message.splitlines()[1:] == [
        "  last lines   reading shard 7",
        "  it was at    /home/me/photos.py:31 in __getitem__",
        "               /home/me/photos.py:12 in <module>",
    ]
    asked = ["Stack (most recent call first):", *dump[5:7]]
    assert "last lines" not in end(1, {0: -signal.SIGSEGV}, tails={0: asked}).message


# -- stuck ------------------------------------------------------------------------------------------------------------


def test_a_rank_that_was_waited_for_in_vain_is_stuck_though_it_was_killed_in_the_end() -> None:
    outcome = end(2, [Exit(0, 1, 20.1), told(1)], late(0, 20.0, 1), states={1: "T"}, tails={1: ["the last word"]})
    assert (outcome.status, outcome.cause) == (1, "stuck")
    assert outcome.headline == "rank 1 of 2 is stuck: rank 0 waited 20 s for it to exchange partial sums"
    assert [line.split(maxsplit=1) for line in outcome.message.splitlines()[1:]] == [
        ["found", "it is stopped: by SIGSTOP, or by a terminal"],
        ["last", "lines   the last word"],
        ["to", "do        where it was only slow: a longer --timeout"],
    ]


def test_the_one_that_waits_for_nobody_is_the_stuck_one() -> None:
    """0 waits for 1, 1 waits for 2: all deadlines pass, in whatever order."""
    reports = [late(0, 20.0, 1), late(1, 20.2, 2)]
    assert "rank 2 of 3 is stuck: rank 1" in end(3, [Exit(0, 1, 20), Exit(1, 1, 21), told(2)], *reports).headline
    reports = [late(0, 20.2, 1), late(1, 20.0, 2)]
    assert "rank 2 of 3 is stuck: rank 1" in end(3, [Exit(1, 1, 20), Exit(0, 1, 21), told(2)], *reports).headline


def test_ranks_that_wait_for_each_other_lose_a_connection() -> None:
    outcome = end(2, [Exit(0, 1, 20), Exit(1, 1, 21)], late(0, 20.0, 1), late(1, 20.1, 0))
    assert outcome.cause == "lost"


def test_where_nobody_knows_whom_it_waited_for_a_stopped_rank_is_the_stuck_one() -> None:
    exits = [Exit(0, 1, 20.1), told(1), told(2), told(3)]
    states = {1: "S", 2: "T", 3: "R"}
    outcome = end(4, exits, late(0, 20.0, None, "20 s for it"), states=states)
    assert outcome.headline == "rank 2 of 4 is stuck: rank 0 waited 20 s for it"
    assert "rank 1 of 4" in end(4, exits, late(0, 20.0, None), states={1: "S", 2: "S"}).headline


def test_ranks_that_lost_the_one_that_gave_up_do_not_hide_the_stuck_one() -> None:
    reports = [late(0, 20.0, 1), report(2, 20.01, lost=True)]
    assert "rank 1 of 3 is stuck" in end(3, [Exit(0, 1, 20), Exit(2, 1, 20), told(1)], *reports).headline


def test_an_own_error_before_the_deadline_is_the_reason() -> None:
    """A rank that failed and hangs in its end keeps the others waiting."""
    assert end(2, [Exit(0, 1, 25.0), told(1)], report(1, 5.0), late(0, 25.0, 1)).headline == "error of rank 1"


# -- leaving ----------------------------------------------------------------------------------------------------------


def test_ranks_that_leave_as_they_were_asked_to_have_said_so_themselves() -> None:
    for status in (143, 130, 138, os.EX_TEMPFAIL):
        assert end(2, {0: status, 1: status}) == Outcome(status, "", "left", "")


def test_a_failure_weighs_more_than_leaving() -> None:
    assert end(2, {0: 143, 1: -9}).cause == "killed"
    assert end(2, {0: 143, 1: 1}, report(1, 1.0)).cause == "failed"


def test_ctrl_c_in_one_rank_alone_is_no_error() -> None:
    outcome = end(2, {0: 130, 1: 130}, report(0, 1.0, status=130, text="rank 0 was interrupted"))
    assert (outcome.status, outcome.cause) == (130, "left")


def facts(*codes: int, reports: tuple[Report, ...] = ()) -> Facts:
    return Facts(len(codes), [Exit(rank, code, 1.0) for rank, code in enumerate(codes)], reports)


def test_a_stopped_launcher_says_nothing_where_ranks_have_left_by_themselves() -> None:
    assert stopped(facts(143, 143), signal.SIGTERM, [], 120) == Outcome(143, "", "left", "")
    assert stopped(facts(0, 138), signal.SIGUSR1, [], 120).status == 138


def test_a_stopped_launcher_says_that_ranks_had_no_last_word() -> None:
    assert stopped(facts(-15, -15), signal.SIGTERM, [], 120).message == (
        "squall: stopped by SIGTERM; all 2 ranks have ended"
    )
    interrupted = Report(0, 130, "rank 0 was interrupted", "", "", False, 1.0)
    assert stopped(facts(130, 130, reports=(interrupted,)), signal.SIGINT, [], 120).message == (
        "squall: stopped by SIGINT; all 2 ranks have ended"
    )


def test_a_stopped_launcher_says_whom_it_had_to_kill() -> None:
    outcome = stopped(Facts(2, [Exit(0, 143, 1.0), told(1)]), signal.SIGTERM, [1], 120)
    assert outcome.status == 143
    assert outcome.message == "squall: stopped by SIGTERM; rank 1 of 2 killed: not gone within 120 s"
    assert stopped(Facts(2, [told(0), told(1)]), signal.SIGINT, [0, 1], None).message == (
        "squall: stopped by SIGINT; rank 0, 1 of 2 killed at once"
    )


def test_a_run_that_finished_before_it_saw_the_signal_has_finished() -> None:
    assert stopped(facts(0, 0), signal.SIGTERM, [], 120).status == 0


def test_a_rank_that_hangs_on_the_way_out_is_said() -> None:
    hangs = Facts(2, [Exit(0, 1, 20.1), told(1)], [late(0, 20.0, 1)])
    outcome = stopped(hangs, signal.SIGTERM, [1], 120)
    assert (outcome.status, outcome.cause) == (143, "left")
    assert outcome.headline.startswith("stopped by SIGTERM; rank 1 of 2 is stuck: rank 0 waited 20 s for it")
    assert stopped(hangs, signal.SIGTERM, [1], None).headline.endswith("rank 1 of 2 killed at once")


def test_an_error_on_the_way_out_is_said() -> None:
    outcome = stopped(facts(1, 143, reports=(report(0, 1.0),)), signal.SIGTERM, [], 120)
    assert (outcome.status, outcome.headline) == (1, "error of rank 0")


def test_a_death_on_the_way_out_is_said_and_the_job_stays_stopped() -> None:
    """A cause like "killed" would start the ranks again."""
    outcome = stopped(facts(143, -11), signal.SIGTERM, [], 120)
    assert (outcome.status, outcome.cause) == (143, "left")
    assert outcome.message == "squall: stopped by SIGTERM; rank 1 of 2 was killed by SIGSEGV"
    killed_then = Facts(2, [Exit(1, -11, 1.0), told(0)])
    assert stopped(killed_then, signal.SIGTERM, [0], 120).headline == outcome.headline
    outcome = stopped(facts(1, -9, reports=(report(0, 1.1),)), signal.SIGTERM, [], 120)
    assert (outcome.cause, outcome.headline) == ("failed", "rank 1 of 2 was killed by SIGKILL")


# -- reports ----------------------------------------------------------------------------------------------------------


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


def reported(error: BaseException) -> Report:
    with Reports() as reports:
        report_error(reports.path, error, 0)
        return reports.read()[0]


def test_a_report_says_whom_it_waited_for_and_how_long() -> None:
    found = reported(chained(PeerLostError(1, "to exchange partial sums", "for", LATE), RuntimeError(LATE)))
    assert (found.lost_peer, found.late, found.peer) == (True, True, 1)
    assert found.waited == "20 s for it to exchange partial sums"
    found = reported(PeerLostError(1, "to exchange partial sums", "on", GLOO))
    assert (found.late, found.peer, found.waited) == (False, 1, "on it to exchange partial sums")


def test_a_deadline_without_a_name_is_told_from_a_lost_connection() -> None:
    found = reported(RuntimeError(LATE))
    assert (found.late, found.peer, found.waited) == (True, None, "20 s for it")
    found = reported(PeerMissingError("rank 0 waited 2.5 s for 'key'"))
    assert (found.late, found.peer, found.waited) == (True, None, "2.5 s for it")
    assert not reported(RuntimeError(GLOO)).late
    assert not reported(ZeroDivisionError()).late


def test_ctrl_c_is_reported_without_a_text() -> None:
    found = reported(KeyboardInterrupt())
    assert (found.status, found.message, found.lost_peer) == (130, "", False)
