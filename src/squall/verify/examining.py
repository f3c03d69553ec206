"""From a script to its verdict: run it with several numbers of processes, observe each rank, check what was seen.

for P in processes, and once more the first    trials    -> ranks, each with its trace
asked for: killed and started again            trials
traces of all runs                             checks    -> one Finding a check
how ranks ended                                troubles
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace

from squall.errors import InputError
from squall.verify.catalogue import CHECKS
from squall.verify.checks import BY_NAME, Resumed, Training, resume
from squall.verify.checks.gradient import separate
from squall.verify.checks.training import shown
from squall.verify.finding import Finding, Trouble, Verdict
from squall.verify.program import FOLDER, Program
from squall.verify.stage import Stage
from squall.verify.trace import Run
from squall.verify.trials import Trial, Trials

REFERENCE = "each rank's own gradients, taken before any reduction, added up in one process in float64"

_KNOWN = {check.name: check.known for check in CHECKS}
_QUOTED = 2  # sources of a check that a FAIL without its own shows


def examine(
    script: str,
    arguments: Sequence[str] = (),
    *,
    processes: Sequence[int] = (2, 4),
    epochs: int = 2,
    steps: int = 24,
    limit_s: float = 600.0,
    checks: Sequence[str] | None = None,
    resumes: bool = False,
    resume_with: Sequence[str] = (),
    progress: Callable[[str], None] | None = None,
    stage: Stage | None = None,
) -> Verdict:
    """Runs a training, observes it, and says what is right, what depends on the number of processes, what is wrong.

    Arguments:
        script: a .py file that trains under torchrun, or a target of `squall train`.
        arguments: for the script; for a target, of `squall train`. ``{folder}`` is a new folder for each run.
        processes: numbers of processes, one run each, and one more with the first.
        epochs: observed in each run.
        steps: updates that are run at least in each epoch.
        limit_s: seconds for each run.
        checks: names of those that are asked for; None: all.
        resumes: also kill it after a checkpoint, and start it again.
        resume_with: further arguments with which it then goes on.
        progress: called with a line of text now and then.
        stage: where ranks are started, to be used for many scripts; by default one of its own.

    Raises:
        InputError: no such script or target; no ``{folder}`` in the arguments of a script that is to resume.
        RunError: ranks could not be started.
    """
    started = time.monotonic()
    program = Program(script, tuple(arguments), tuple(resume_with))
    if resumes and program.is_script and not any(FOLDER in argument for argument in arguments):
        raise InputError(
            "verify --resume does not know where the checkpoints come",
            [
                ("rule", "the script is told their folder, and {folder} stands for a new one"),
                ("to do", f"squall verify {script} --resume -- --checkpoints {FOLDER}, or whatever it calls that"),
            ],
        )
    wanted = [check.name for check in CHECKS if checks is None or check.name in checks]
    with nullcontext(stage) if stage is not None else Stage(program.slow_imports) as used:
        trials = Trials(program, used, epochs, steps, limit_s, progress or (lambda text: None))
        runs = [trials.run(number) for number in processes[:1]]
        if not (runs[0].run is None and runs[0].ended.out_of_time):  # else there is no use in trying again
            runs += [trials.run(number) for number in processes[1:]]
        again = trials.run(processes[0], why="once more") if "determinism" in wanted and _whole(runs[0]) else None
        killed = None
        if resumes and runs[0].usable and "resume" in wanted:
            killed = trials.interrupted(processes[0], also=tuple(processes[1:2]))
    usable = [trial for trial in runs if trial.usable]
    unseen = [_unseen(trial.run) for trial in usable if trial.run is not None]
    seen = [trial.run for trial in [trial for trial in runs if _whole(trial)] or usable if trial.run is not None]
    findings: list[Finding] = []
    if seen:
        training = Training(seen, again.run if again is not None else None, script)
        for name in wanted:
            findings.append(_sourced(_judged(name, training, killed)))
    observed = min(epochs, _epochs(seen[0])) if seen else 0
    return Verdict(
        script=shown(script) if program.tree is not None else script,
        arguments=tuple(arguments),
        framework=_framework(seen[0]) if seen else "",
        processes=tuple(processes),
        epochs=observed,
        steps=len(seen[0].first.steps) // max(1, observed) if seen else 0,
        seconds=time.monotonic() - started,
        reference=REFERENCE,
        findings=tuple(findings),
        troubles=tuple(
            _once([*(trouble for trial in runs for trouble in trial.troubles), *(one for one in unseen if one)])
        ),
    )


_Killed = tuple[Trial, dict[int, Trial]]
"""A run that was killed, and those that went on from there, by their numbers of processes."""

_TOGETHER = {"loss weighting", "weights", "epoch coverage", "evaluation", "batch statistics", "augmentation", "mode"}
"""Checks that hold ranks against each other."""


def _judged(name: str, training: Training, killed: _Killed | None) -> Finding:
    """What a check finds; one that cannot cope is not run, and does not hide the others."""
    if name in _TOGETHER and separate(training) is not None:
        return Finding(check=name, outcome="--", says="the processes never meet: see gradient")
    try:
        return _resume(training, killed) if name == "resume" else BY_NAME[name](training)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        return Finding(check=name, outcome="--", says=f"could not judge this training ({said}): please report it")


def _whole(trial: Trial) -> bool:
    return trial.usable and not any(trouble.fatal for trouble in trial.troubles)


def _resume(training: Training, killed: _Killed | None) -> Finding:
    """What came of the kill, if it was asked for."""
    if killed is None:
        return Finding(check="resume", outcome="--", says="not asked for: --resume kills it and starts it again")
    trial, resumed = killed
    if trial.killed_at is None:
        return Finding(
            check="resume",
            outcome="FAIL",
            says="no checkpoint came into {folder}: it could not be killed after one",
            expected="a checkpoint in the observed epochs, in the folder that {folder} stands for",
            found="the script ended, and nothing had been written there after the first update",
            effect="an interrupted run begins again",
            change="write one in each epoch; name the folder where the script takes it: -- --checkpoints {folder}",
        )
    whole = training.runs[0]
    same = resumed.pop(whole.processes)
    if same.run is None or not same.usable:
        return _unstarted(same, trial.killed_at)
    others = [
        Resumed(whole, other.run, trial.killed_at)
        for other in resumed.values()
        if other.run is not None and other.usable
    ]
    finding = resume(training, Resumed(whole, same.run, trial.killed_at), others)
    crashed = [(number, other) for number, other in resumed.items() if not other.usable]
    if finding.outcome == "ok" and crashed:
        number, other = crashed[0]
        why = f": {other.troubles[0].rows[0][1]}" if other.troubles and other.troubles[0].rows else ""
        return replace(finding, outcome="note", says=f"{finding.says}; with {number} processes it does not start{why}")
    return finding


def _unstarted(trial: Trial, killed_at: int) -> Finding:
    trouble = trial.troubles[0] if trial.troubles else None
    why = trouble.rows[0][1] if trouble is not None and trouble.rows else "it made no update"
    return Finding(
        check="resume",
        outcome="FAIL",
        says=f"killed after update {killed_at}, it does not go on: {why}",
        place=trouble.place if trouble is not None else None,
        expected="it goes on from its last whole checkpoint",
        found=why,
        effect="an interrupted run is lost",
        change="load the newest checkpoint that is whole; write each under another name and rename it when it is",
    )


def _framework(run: Run) -> str:
    about = run.first.about
    found = list(about.get("frameworks", ()))
    if about.get("fsdp2"):
        found.append("FSDP2")
    if "DistributedDataParallel" in about.get("models", ()) and not found:
        found.append("DistributedDataParallel")
    if about.get("backend") not in (None, "undefined"):
        found.append(str(about["backend"]))
    return ", ".join(found)


def _epochs(run: Run) -> int:
    data = run.first.training_data[:1]
    return max(1, len(run.first.passes(data[0], training=True))) if data else 1


def _sourced(finding: Finding) -> Finding:
    """With the sources of its check, where a FAIL names none of its own."""
    if finding.outcome != "FAIL" or finding.known:
        return finding
    return replace(finding, known=_KNOWN.get(finding.check, ())[:_QUOTED])


def _unseen(run: Run) -> Trouble | None:
    """What the observer itself could not cope with: it has left the training alone, and seen less of it."""
    failed = {event["hook"]: event for rank in run.ranks for event in rank.of("blind")}
    if not failed:
        return None
    return Trouble(
        what="partly unseen",
        says="a part of the training could not be observed, and what follows may lack it: please report it",
        processes=run.processes,
        rows=tuple((f"{hook}, {event['times']} times", event["error"]) for hook, event in failed.items()),
        fatal=False,
    )


def _once(found: Sequence[Trouble]) -> list[Trouble]:
    """Each trouble once, whatever the number of processes."""
    kept: list[Trouble] = []
    for trouble in found:
        if not any(one.what == trouble.what and one.place == trouble.place for one in kept):
            kept.append(trouble)
    return kept
