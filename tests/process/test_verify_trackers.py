"""No tracker of experiments takes a trial of `squall verify` for a training: nothing leaves the machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "verify" / "troubles" / "tracks.py"


def test_trackers_are_offline_and_leave_nothing(tmp_path: Path) -> None:
    for name in ("work", "out", "home"):
        (tmp_path / name).mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        told = {"WANDB_MODE": "online", "WANDB_BASE_URL": address, "WANDB_API_KEY": "a" * 40}
        told |= {"MLFLOW_TRACKING_URI": address, "MLFLOW_EXPERIMENT_ID": "17", "HOME": str(tmp_path / "home")}
        flags = ["-P", "2", "--to", str(tmp_path / "out"), "--limit", "60s", "--checks", "gradient"]
        done = subprocess.run(
            [sys.executable, "-m", "squall", "verify", str(SCRIPT), *flags],
            cwd=tmp_path / "work",
            env={**os.environ, **told},
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        try:
            server.accept()
        except BlockingIOError:
            called = False
        else:
            called = True
    assert not called
    assert list((tmp_path / "work").iterdir()) == []
