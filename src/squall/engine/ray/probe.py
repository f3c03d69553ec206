"""What a Ray cluster is, seen from outside: whether it asks for a token, whether ours is right, which nodes it has.

A process of its own (`look` starts it), since Ray reads the way of authentication once, may wait far longer than a
person does, and may end a process that it is not content with. It connects to the cluster's head only, and as nobody:
no job, no worker. It is run with and without a token; a cluster that answers without one asks for none::

    $ RAY_AUTH_MODE=disabled python probe.py 10.0.0.1:6379
    {"refused": "...Authentication token is missing or incorrect..."}
    $ RAY_AUTH_MODE=token RAY_AUTH_TOKEN=... python probe.py 10.0.0.1:6379
    {"nodes": ["10.0.0.1", "10.0.0.2"]}
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Seen:
    """What a probe saw.

    Attributes:
        nodes: addresses of the nodes that are alive.
        refused: why it was not let in, in Ray's words; empty: it was.
        failed: why nothing was seen at all; empty: something was.
    """

    nodes: tuple[str, ...] = ()
    refused: str = ""
    failed: str = ""


def look(address: str, mode: str, timeout_s: float) -> Seen:
    """Looks at a cluster from a process of its own.

    Arguments:
        address: host:port of its head.
        mode: "token" (where Ray finds it) or "disabled".
    """
    environment: Mapping[str, str] = {**os.environ, "RAY_AUTH_MODE": mode}
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(Path(__file__)), address],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
            start_new_session=True,  # Ctrl-C is this process's: it ends the probe
        )
    except subprocess.TimeoutExpired:
        return Seen(failed=f"no answer within {timeout_s:.0f} s")
    try:
        said = json.loads(done.stdout)
    except ValueError:
        return Seen(failed=f"Ray's client ended with status {done.returncode}")
    return Seen(tuple(said.get("nodes", ())), said.get("refused", ""), said.get("failed", ""))


def main(address: str) -> dict[str, Any]:
    """Connects, and says what it saw."""
    raylet: Any = importlib.import_module("ray._raylet")
    from ray.exceptions import AuthenticationError

    try:
        found = raylet.GcsClient(address=address).get_all_node_info(timeout=5)
    except AuthenticationError as error:
        return {"refused": str(error)}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}
    return {"nodes": sorted({node.node_manager_address for node in found.values() if not node.state})}  # 0 is alive


if __name__ == "__main__":
    json.dump(main(sys.argv[1]), sys.stdout)
