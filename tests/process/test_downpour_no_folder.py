"""A run of replicas and shards on real Ray that has no folder: what it trained comes back, and nothing stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.process.downpour_runs import GONE_S
from tests.process.ray_drivers import until

SCRIPT = """
import json
import torch
import torch.nn.functional as F
import squall
from squall.model import weights

generator = torch.Generator().manual_seed(1)
inputs = torch.randn(400, 6, generator=generator)
labels = (inputs[:, 0] + inputs[:, 1] > 0).long()
data = [(x, int(y)) for x, y in zip(inputs, labels)]

def accuracy():
    with torch.no_grad():
        return float((net(inputs).argmax(1) == labels).float().mean())

torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(6, 40), torch.nn.Tanh(), torch.nn.Linear(40, 2))
task = squall.Task(model=lambda: net, loss=F.cross_entropy, train=data)
recipe = squall.Recipe(epochs=2, worker_batch_size=4, lr={"base": 0.05, "schedule": "constant"},
                       optimizer={"name": "adagrad"}, strategy="downpour",
                       downpour={"replicas": 1, "shards": 2}, checkpoint={"every": "50step"})
if __name__ == "__main__":
    before = accuracy(), weights.sha256(net.named_parameters())
    result = squall.train(task, recipe, sinks=())
    after = accuracy(), weights.sha256(net.named_parameters())
    print(json.dumps({"before": before, "after": after, "outcome": result.outcome,
                      "sha256": result.values["weights_sha256"]}))
"""


def test_the_trained_weights_come_back_and_nothing_stays(tmp_path: Path, mark: Callable[[], list[int]]) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as temporary:  # sockets' paths are short
        done = subprocess.run(
            [sys.executable, str(script)],
            cwd=tmp_path,
            env={**os.environ, "TMPDIR": temporary},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        until(lambda: {path.name.partition("_")[0] for path in Path(temporary).iterdir()} <= {"torchinductor"}, GONE_S)
    said = json.loads(done.stdout.splitlines()[-1])
    (accuracy, sha256), (trained, trained_sha256) = said["before"], said["after"]
    assert said["outcome"] == "finished"
    assert said["sha256"] == trained_sha256 != sha256
    assert accuracy < 0.8 < 0.9 < trained
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]
    assert mark() == []
