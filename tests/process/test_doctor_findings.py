"""The doctor on this machine, which can train, and on machines that cannot."""

import json
import os
from collections import namedtuple

import pytest
import torch

from squall.engine import doctor, formats
from squall.engine.doctor import Finding, examine, render, to_json
from squall.engine.verdict import Outcome
from squall.recipe import load, override


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_this_machine_adds_numbers_between_two_real_ranks() -> None:
    findings = examine()
    network = by_name(findings)["network"]
    assert network.status == "ok", network
    assert "2 ranks over Gloo on loopback" in network.text
    assert "this machine can train" in render(findings)


def test_findings_are_the_same_as_text_and_json() -> None:
    findings = examine(network=False)
    assert "network" not in by_name(findings)
    said = json.loads(to_json(findings))
    assert [one["name"] for one in said] == [finding.name for finding in findings]
    for line, finding in zip([x for x in render(findings).splitlines() if "to do:" not in x], findings, strict=False):
        assert line.split("   ")[0].strip() == finding.name
        assert line.endswith(finding.text)


def test_a_failed_finding_decides_the_verdict_and_says_what_to_do() -> None:
    text = render([Finding("cpu", "ok", "fine"), Finding("network", "fail", "no lo", "ip link set lo up")])
    assert text.splitlines() == [
        "cpu       ok     fine",
        "network   fail   no lo",
        "                 to do: ip link set lo up",
        "",
        "network: runs will fail until this is mended",
    ]


def test_a_network_that_does_not_work_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "run_ranks", lambda *_, **__: Outcome(1, "squall: rank 0 failed"))
    before = len(os.listdir("/proc/self/fd"))
    network = by_name(examine())["network"]
    assert network.status == "fail"
    assert "rank 0 failed" in network.text
    assert len(os.listdir("/proc/self/fd")) == before


def test_little_shared_memory_is_a_warning_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    stat = namedtuple("stat", "f_bavail f_frsize")
    monkeypatch.setattr(os, "statvfs", lambda _: stat(16, 4096))
    found = by_name(examine(network=False))["shared memory"]
    assert found.status == "warn"
    assert "num_workers=0" in found.todo


def test_a_check_that_breaks_is_a_finding_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> None:
        raise FileNotFoundError("/dev/shm")

    monkeypatch.setattr(os, "statvfs", broken)
    found = by_name(examine(network=False))["shared memory"]
    assert found.status == "fail"
    assert "FileNotFoundError" in found.text


def test_the_fastest_format_is_named_with_its_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    best = formats.Format("bfloat16", "compute.precision=bf16")
    monkeypatch.setattr(formats, "speeds", lambda _: {formats.PLAIN: 1.0, best: 3.24})
    found = by_name(examine(network=False))["formats"]
    assert found.text == "a convolutional step against plain float32: bfloat16 3.2x"
    assert found.todo == "squall train ... compute.precision=bf16   (where accuracy allows it)"
    monkeypatch.setattr(formats, "speeds", lambda _: {formats.PLAIN: 1.0, best: 1.1})
    assert not by_name(examine(network=False))["formats"].todo


def test_formats_are_timed_here_and_leave_torch_as_it_was() -> None:
    before = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    speeds = formats.speeds(torch.device("cpu"))
    assert speeds.pop(formats.PLAIN) == 1
    assert {each.name for each in speeds} == {"float32 channels-last", "bfloat16", "bfloat16 channels-last"}
    assert all(speed > 0 for speed in speeds.values())
    assert (torch.get_num_threads(), torch.backends.cudnn.allow_tf32) == before
    for each in speeds:  # the fields are ones that a recipe takes
        override(load("digits"), each.fields.split())
