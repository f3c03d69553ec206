"""Verdicts as `squall verify` may come to them, for tests of what is said about them."""

from __future__ import annotations

from dataclasses import replace

from squall.verify.finding import OUTCOMES, Edit, Finding, Outcome, Place, Trouble, Verdict

FILES = ["verify.html", "verify.json", "verify.xml"]
HOSTILE = (
    "</style></pre><script>alert(1)</script><b onclick='x'>\x1b[2J\x1b]0;t\x07 \u202e\x00\r\n\ud800 & \"]]>\ufffe\t"
)


def _of(check: str, outcome: Outcome, says: str) -> Finding:
    return Finding(check=check, outcome=outcome, says=says)


_REPEATS = Finding(
    check="epoch order",
    outcome="FAIL",
    says="epoch 2 repeats epoch 1: 1,440 of 1,440 positions equal; by chance about 1",
    place=Place(path="my_script.py", line=41, text="    for epoch in range(epochs):"),
    expected="a new permutation in each epoch",
    found="DistributedSampler.set_epoch is never called, so each epoch has epoch 0's order",
    effect="the same 32 samples meet in every epoch; usually 0 to 1 points of accuracy, and never an error message",
    edits=(
        Edit(mark=" ", line=41, text="    for epoch in range(epochs):"),
        Edit(mark="+", line=42, text="        sampler.set_epoch(epoch)"),
    ),
    known=("pytorch#31771", "pytorch#31232"),
)

ONE_FAULT = Verdict(
    script="my_script.py",
    framework="DistributedDataParallel, gloo",
    processes=(2, 4),
    epochs=2,
    steps=6,
    seconds=41.2,
    reference="every rank's own batches, replayed one after another in one process, float32",
    findings=(
        _of("gradient", "ok", "= sum of 4 ranks / 128 samples; largest relative difference 2e-7 (layer3.0.conv2)"),
        _of("loss weighting", "ok", "a mean of means, and all ranks hold equal batches, in the last step too (8 each)"),
        _of("epoch coverage", "note", "1,437 samples, 3 of them twice: DistributedSampler pads to a multiple of 4"),
        _REPEATS,
        _of("augmentation", "ok", "no two ranks or epochs share a stream"),
        _of("rate", "ok", "0.1 at steps 0 .. 11, as the schedule says"),
        _of("weight decay", "ok", "1e-4, not scaled with the loss"),
        _of("batch statistics", "note", "over 32 a rank: another per-rank batch would be another objective"),
        _of("evaluation", "ok", "360 of 360 samples counted once"),
        _of("resume", "--", "no checkpoint was written; verify --resume 'CMD' to check"),
    ),
)

HUNG = Verdict(
    script="my_script.py",
    processes=(2, 4),
    seconds=601.0,
    troubles=(
        Trouble(
            what="hung",
            says="my_script.py hung with 4 processes: rank 1 waited in an all-reduce for 570 s, "
            "rank 0 had left its loop",
            place=Place(path="my_script.py", line=41, text="    dist.all_reduce(loss)"),
            processes=4,
            rows=(("rank 0", "ended"), ("rank 1", "Traceback:\n  ZeroDivisionError")),
        ),
    ),
)


def ok() -> Verdict:
    """The same training without its fault."""
    return replace(ONE_FAULT, findings=tuple(f for f in ONE_FAULT.findings if f.outcome != "FAIL"))


def hostile() -> Verdict:
    """Every text that comes from a script is markup, control characters and what no encoding has."""
    place = Place(path=HOSTILE, line=1, text=HOSTILE)
    findings = [
        Finding(
            check="gradient" if outcome == "FAIL" else f"check {outcome}",
            outcome=outcome,
            says=HOSTILE,
            place=place,
            expected=HOSTILE,
            found=HOSTILE,
            effect=HOSTILE,
            change=HOSTILE,
            edits=(Edit(mark="-", line=1, text=HOSTILE),),
            known=(HOSTILE,),
        )
        for outcome in OUTCOMES
    ]
    trouble = Trouble(what="crashed", says=HOSTILE, place=place, rows=((HOSTILE, HOSTILE),))
    return Verdict(
        script=HOSTILE,
        arguments=(HOSTILE,),
        framework=HOSTILE,
        processes=(2,),
        reference=HOSTILE,
        findings=tuple(findings),
        troubles=(trouble, replace(trouble, fatal=False)),
    )
