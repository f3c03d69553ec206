"""`squall verify` as one line of a project's own tests, so that its training script stays right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from squall.errors import Mistakes
from squall.verify.catalogue import chosen
from squall.verify.finding import Verdict
from squall.verify.masking import masked
from squall.verify.text import stories


def assert_right(
    script: str,
    arguments: Sequence[str] = (),
    *,
    processes: Sequence[int] = (2, 4),
    allow: Sequence[str] = (),
    epochs: int = 2,
    steps: int = 24,
    limit_s: float = 600.0,
    checks: Sequence[str] | None = None,
    resumes: bool = False,
    resume_with: Sequence[str] = (),
) -> Verdict:
    """Runs a training script as `squall verify` does and fails if one of the checks fails.

    Arguments:
        script: its path, or a Squall target.
        arguments: for the script.
        processes: numbers of processes to run it with, one after the other.
        allow: checks that may fail.
        epochs: observed.
        steps: updates that are run at least in each of them.
        limit_s: seconds for each run of the script.
        checks: only these; None: all.
        resumes: also kill it after a checkpoint and start it again; ``{folder}`` in the arguments is where they come.
        resume_with: further arguments with which it then goes on.

    Returns:
        The verdict, also with its notes.

    Raises:
        AssertionError: a check that is not allowed to failed, or the training could not be observed; says all of it.
        InputError: no such check, no such script.

    Example::

        from squall import verify

        def test_the_training_is_right():
            verify.assert_right("train.py", ["--epochs", "2"], processes=(2,))
    """
    __tracebackhide__ = True  # pytest then shows the test's own line
    mistakes = Mistakes("assert_right")
    allowed = chosen(allow, mistakes, "allow")
    only = None if checks is None else chosen(checks, mistakes, "checks")
    mistakes.raise_if_any()
    from squall.verify import devices
    from squall.verify.examining import examine

    processes, left_out = devices.fitting(processes, devices.count())
    verdict = examine(
        script,
        arguments,
        processes=processes,
        epochs=epochs,
        steps=steps,
        limit_s=limit_s,
        checks=only,
        resumes=resumes,
        resume_with=resume_with,
    )
    if left_out:
        verdict = replace(verdict, troubles=(*left_out, *verdict.troubles))
    failed = [finding.check for finding in verdict.fails if finding.check not in allowed]
    if failed or any(trouble.fatal for trouble in verdict.troubles):
        raise AssertionError(stories(replace(verdict, arguments=tuple(masked(verdict.arguments))), allow=allowed))
    return verdict
