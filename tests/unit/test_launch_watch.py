"""When ranks are told to end: with clocks that are passed in."""

import os
import signal

from squall.engine.watch import ABANDON, Grace, Watch

GRACE = Grace(echo=1, failed=4, leave=120)


def sent(watch: Watch, until: float, step: float = 0.25) -> dict[float, int]:
    """What is sent when, as time goes on from 0."""
    times = [step * i for i in range(int(until / step) + 1)]
    return {now: number for now in times if (number := watch.due(now))}


def test_nothing_happens_while_all_run_or_end_well() -> None:
    watch = Watch(2, GRACE)
    assert watch.patience(0.0) is None
    watch.ended(0, 0, 5.0)
    assert (watch.running, watch.patience(5.0), watch.failed) == ({1}, None, False)


def test_after_a_failure_the_others_have_a_moment_then_sigterm_then_sigkill() -> None:
    watch = Watch(3, GRACE)
    watch.ended(1, -9, 0.0)
    assert watch.failed
    assert watch.patience(0.25) == 0.75
    assert sent(watch, 5) == {1.0: signal.SIGTERM, 4.0: signal.SIGKILL}
    assert watch.killed == [0, 2]


def test_ends_after_sigterm_are_told_and_change_nothing() -> None:
    watch = Watch(3, GRACE)
    watch.ended(1, 1, 0.0)
    watch.ended(2, 1, 0.5)  # an echo
    assert watch.due(1.0) == signal.SIGTERM
    watch.ended(0, -15, 1.5)
    assert [(end.rank, end.told) for end in watch.exits] == [(1, False), (2, False), (0, True)]
    assert not watch.running


def test_a_second_failure_does_not_prolong_the_first_ones_plan() -> None:
    watch = Watch(3, GRACE)
    watch.ended(0, 1, 0.0)
    watch.ended(1, 1, 3.0)
    assert sent(watch, 4.25) == {1.0: signal.SIGTERM, 4.0: signal.SIGKILL}


def test_ranks_that_leave_have_long_for_it_and_are_not_sent_a_second_signal() -> None:
    for code in (os.EX_TEMPFAIL, 128 + signal.SIGTERM):
        watch = Watch(2, GRACE)
        watch.ended(1, code, 0.0)
        assert not watch.failed
        assert sent(watch, 121) == {120.0: signal.SIGKILL}


def test_a_failure_while_others_leave_is_short_again() -> None:
    watch = Watch(3, GRACE)
    watch.ended(1, 143, 0.0)
    watch.ended(2, 1, 2.0)
    assert sent(watch, 10) == {3.0: signal.SIGTERM, 6.0: signal.SIGKILL}


def test_the_first_signal_is_sent_on_once_and_ranks_may_save() -> None:
    watch = Watch(2, GRACE)
    assert watch.came(signal.SIGUSR1, 0.0) == signal.SIGUSR1
    assert watch.asked == signal.SIGUSR1
    watch.ended(0, 138, 50.0)
    watch.ended(1, -signal.SIGUSR1, 60.0)  # one that had no handler yet
    assert not watch.failed
    assert not watch.killed
    assert not watch.hurried


def test_ranks_that_do_not_leave_are_killed() -> None:
    watch = Watch(2, GRACE)
    watch.came(signal.SIGTERM, 0.0)
    watch.ended(0, 143, 1.0)
    assert sent(watch, 121) == {120.0: signal.SIGKILL}
    assert watch.killed == [1]
    assert not watch.hurried


def test_a_second_signal_kills_at_once() -> None:
    watch = Watch(2, GRACE)
    watch.came(signal.SIGINT, 0.0)
    assert watch.came(signal.SIGINT, 0.1) == signal.SIGKILL
    assert (watch.asked, watch.hurried, watch.killed) == (signal.SIGINT, True, [0, 1])


def test_a_scheduler_that_sends_its_signal_twice_at_once_means_it_once() -> None:
    watch = Watch(2, GRACE)
    assert watch.came(signal.SIGTERM, 5.0) == signal.SIGTERM
    assert watch.came(signal.SIGTERM, 5.1) == 0
    assert watch.came(signal.SIGTERM, 6.5) == signal.SIGKILL


def test_a_signal_while_a_failed_job_ends_kills_at_once() -> None:
    watch = Watch(2, GRACE)
    watch.ended(0, 1, 0.0)
    assert watch.came(signal.SIGTERM, 0.1) == signal.SIGKILL


def test_sigquit_is_for_who_wants_the_end_now() -> None:
    assert Watch(2, GRACE).came(signal.SIGQUIT, 0.0) == signal.SIGKILL


def test_a_death_by_another_signal_than_the_one_sent_on_is_a_failure() -> None:
    watch = Watch(2, GRACE)
    watch.came(signal.SIGTERM, 0.0)
    watch.ended(1, -9, 1.0)
    assert watch.failed


def test_ranks_that_do_not_end_even_when_killed_are_abandoned() -> None:
    """A process that hangs in the kernel takes no signal."""
    watch = Watch(2, GRACE)
    watch.ended(0, 1, 0.0)
    assert sent(watch, 20) == {1.0: signal.SIGTERM, 4.0: signal.SIGKILL, 14.0: ABANDON}
    assert not watch.running
    assert (watch.exits[-1].rank, watch.exits[-1].told) == (1, True)
