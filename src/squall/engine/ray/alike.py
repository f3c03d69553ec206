"""The same software on all machines of a cluster: what one must have, and what is said of one that has not.

Roles travel as pickles, and tensors by Gloo's own protocol: neither says which version it is of, and a machine with
another one may fail anywhere, or compute other numbers in silence. So a role's process compares versions before it
makes the role. One without Squall cannot even do that: Ray says that it cannot import what it was sent.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from squall.errors import InputError
from squall.version import own_version

_RULE = ("rule", "the same versions of squall and torch on all machines of a cluster")


def versions() -> dict[str, str]:
    """Of this process: squall's, and torch's without its build (+cpu, +cu130)."""
    try:
        torch = version("torch").partition("+")[0]
    except PackageNotFoundError:
        torch = "none"
    return {"squall": own_version(), "torch": torch}


def check(role: str, drivers: Mapping[str, str], address: str) -> None:
    """Compares this process's versions with the driver's.

    Arguments:
        role: that is to be made here.
        drivers: `versions` of the driver.
        address: of this machine.

    Raises:
        InputError: they differ.
    """
    ours = versions()
    if ours != drivers:
        raise InputError(
            f"{role} is on a machine with other versions than the driver's",
            [
                ("found", f"{_text(ours)} on {socket.gethostname()} ({address}); {_text(drivers)} on the driver's"),
                _RULE,
                ("to do", f"there: {_install(drivers)}"),
            ],
        )


def lacking(role: str, address: str, why: str) -> InputError:
    """A machine that cannot import what a role is made of.

    Arguments:
        why: Ray's words; the last line is Python's.
    """
    lines = [line.strip() for line in why.splitlines() if line.strip()]
    found = next((line for line in reversed(lines) if "Error: " in line), lines[-1] if lines else "nothing is known")
    where = f"the machine at {address}" if address else "a machine of the cluster"
    return InputError(
        f"{role} cannot run on {where}",
        [("found", found), _RULE, ("to do", f"there, for the Python that Ray runs: {_install(versions())}")],
    )


def _text(found: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in found.items())


def _install(found: Mapping[str, str]) -> str:
    return f"pip install 'squall-train[async]=={found['squall']}' 'torch=={found['torch']}'"
