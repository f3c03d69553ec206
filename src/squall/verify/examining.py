"""From a script to its verdict: run it with several numbers of processes, observe each rank, check what was seen.

for P in processes, and once more the first    stage.Job -> ranks, each with its trace      observe
traces of all runs                             -> Training -> one Finding a check            checks
how ranks ended                                -> Troubles                                   here
"""

from __future__ import annotations

import ast
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from squall.errors import InputError
from squall.verify.catalogue import CHECKS
from squall.verify.checks import BY_NAME, Training
from squall.verify.checks.training import shown
from squall.verify.finding import Finding, Trouble, Verdict
from squall.verify.stage import Ended, Job, Stage
from squall.verify.trace import Run, read
from squall.verify.troubles import troubles

REFERENCE = "each rank's own gradients, taken before any reduction, added up in one process in float64"

_HEAVY = (
    "accelerate",
    "lightning",
    "pytorch_lightning",
    "transformers",
    "datasets",
    "torchvision",
    "sklearn",
    "pandas",
)
_PATIENCE = 0.25  # of the limit: for the epochs after those that are observed


def examine(
    script: str,
    arguments: Sequence[str] = (),
    *,
    processes: Sequence[int] = (2, 4),
    epochs: int = 2,
    steps: int = 24,
    limit_s: float = 600.0,
    checks: Sequence[str] | None = None,
    progress: Callable[[str], None] | None = None,
    stage: Stage | None = None,
) -> Verdict:
    """Runs a training, observes it, and says what is right, what depends on the number of processes, what is wrong.

    Arguments:
        script: a .py file that trains under torchrun, or a target of `squall train`.
        arguments: for the script; for a target, of `squall train`.
        processes: numbers of processes, one run each, and one more with the first.
        epochs: observed in each run.
        steps: updates that are run at least in each epoch.
        limit_s: seconds for each run.
        checks: names of those that are asked for; None: all.
        progress: called with a line of text now and then.
        stage: where ranks are started, to be used for many scripts; by default one of its own.

    Raises:
        InputError: no such script or target.
        RunError: ranks could not be started.
    """
    started = time.monotonic()
    what = _what(script, arguments)
    wanted = [check.name for check in CHECKS if checks is None or check.name in checks]
    numbers = [*processes, *(processes[:1] if "determinism" in wanted else ())]
    say = progress or (lambda text: None)
    if stage is None:
        with Stage(_imports(script)) as own:
            runs = _observe(what, own, numbers, epochs, steps, limit_s, say)
    else:
        runs = _observe(what, stage, numbers, epochs, steps, limit_s, say)
    found = [trouble for one in runs for trouble in one.troubles]
    whole = [one.run for one in runs[: len(processes)] if one.run is not None and one.run.first.steps]
    again = runs[len(processes)].run if len(runs) > len(processes) else None
    findings: list[Finding] = []
    if whole:
        training = Training(whole, again, script)
        findings = [BY_NAME[name](training) for name in wanted if name in BY_NAME]
        known = {check.name: check.known for check in CHECKS}
        findings = [_with_sources(finding, known) for finding in findings]
    first = whole[0].first if whole else None
    return Verdict(
        script=shown(script) if script.endswith(".py") else script,
        arguments=tuple(arguments),
        framework=_framework(whole[0]) if whole else "",
        processes=tuple(processes),
        epochs=min(epochs, _epochs(whole[0])) if whole else 0,
        steps=len(first.steps) // max(1, min(epochs, _epochs(whole[0]))) if first else 0,
        seconds=time.monotonic() - started,
        reference=REFERENCE,
        findings=tuple(findings),
        troubles=tuple(_once(found)),
    )


class _Observed:
    """One run: its traces, if there are any, and what went wrong."""

    def __init__(self, run: Run | None, found: Sequence[Trouble]) -> None:
        self.run, self.troubles = run, found


def _observe(
    what: dict[str, Any],
    stage: Stage,
    processes: Sequence[int],
    epochs: int,
    steps: int,
    limit_s: float,
    progress: Callable[[str], None],
) -> list[_Observed]:
    results: list[_Observed] = []
    for place, number in enumerate(processes):
        again = number in processes[:place]
        if again and (results[0].run is None or any(trouble.fatal for trouble in results[0].troubles)):
            break
        progress(f"{number} process{'' if number == 1 else 'es'}{', once more' if again else ''} ...")
        with tempfile.TemporaryDirectory(prefix="squall-verify-") as name:
            folder = Path(name) / "ranks"
            folder.mkdir()
            options = {"script": what["script"], "module": what["module"], "arguments": what["arguments"]}
            options |= {"epochs": epochs, "steps": steps, "patience_s": _PATIENCE * limit_s}
            if what["module"] is not None:
                options["arguments"] = [*what["arguments"], "--out", str(Path(name) / "run")]
            job = Job(
                main="squall.verify.observe.rank:main",
                options=options,
                processes=number,
                folder=folder,
                limit_s=limit_s,
            )
            ended = stage.run(job)
            run = _traces(folder, number)
        results.append(_Observed(run, troubles(what["script"] or what["shown"], ended, run, limit_s)))
        if _hopeless(ended, run):
            break
    return results


def _hopeless(ended: Ended, run: Run | None) -> bool:
    """Whether there is no use in trying with more processes."""
    return ended.out_of_time and run is None


def _traces(folder: Path, number: int) -> Run | None:
    try:
        return read(folder, number)
    except FileNotFoundError:
        return None


def _what(script: str, arguments: Sequence[str]) -> dict[str, Any]:
    """What the ranks run: a script, or `squall train` with a target."""
    if script.endswith(".py") and _is_script(Path(script)):
        return {"script": script, "module": None, "arguments": list(arguments), "shown": script}
    return {"script": None, "module": "squall", "arguments": ["train", script, *arguments], "shown": script}


def _is_script(path: Path) -> bool:
    """Whether a file does something when it is run, and not only defines a task.

    Raises:
        InputError: it cannot be read, or is no Python.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise InputError(f"cannot read {path}", [("found", str(error.strerror))]) from None
    except (SyntaxError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path} is no Python", [("found", str(error))]) from None
    defines = any(
        isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == "task" for to in node.targets)
        for node in tree.body
    )
    runs = any(isinstance(node, ast.If) and "__name__" in ast.dump(node.test) for node in tree.body)
    return runs or not defines


def _imports(script: str) -> list[str]:
    """The slow imports that a script names, to be made once for all its ranks."""
    if not script.endswith(".py"):
        return []
    try:
        tree = ast.parse(Path(script).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return [name for name in _HEAVY if name in names]


def _framework(run: Run) -> str:
    about = run.first.about
    found = list(about.get("frameworks", ()))
    if about.get("fsdp2"):
        found.append("FSDP2")
    if "DistributedDataParallel" in about.get("models", ()) and not found:
        found.append("DistributedDataParallel")
    if about.get("backend"):
        found.append(str(about["backend"]))
    return ", ".join(found)


def _epochs(run: Run) -> int:
    data = run.first.training_data[:1]
    return max(1, len(run.first.passes(data[0], training=True))) if data else 1


def _with_sources(finding: Finding, known: dict[str, tuple[str, ...]]) -> Finding:
    from dataclasses import replace

    if finding.outcome != "FAIL" or finding.known:
        return finding
    return replace(finding, known=known.get(finding.check, ())[:2])


def _once(found: Sequence[Trouble]) -> list[Trouble]:
    """Each trouble once, whatever the number of processes."""
    kept: list[Trouble] = []
    for trouble in found:
        if not any(one.what == trouble.what and one.place == trouble.place for one in kept):
            kept.append(trouble)
    return kept
