"""`squall doctor`: what this machine is, and whether it works."""

from __future__ import annotations

from squall.cli import flags


def doctor(json_: flags.JsonFlag = False) -> int:
    """Say what this machine is and whether it works: devices, threads, shared memory, network; to paste into issues."""
    from squall.engine.doctor import examine, render, to_json

    findings = examine()
    print(to_json(findings) if json_ else render(findings))
    return 1 if any(finding.status == "fail" for finding in findings) else 0
