"""A disk that is full, or read-only, on a real small file system in a mount namespace of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.chaos import compare, environment

_MOUNT = "mount -t tmpfs -o size={size} tmpfs {folder}"

LOOP = """\
import sys
from contextlib import suppress
from pathlib import Path

import squall
import torch
from torch import nn

generator = torch.Generator().manual_seed(1)
data = [(torch.randn(64, generator=generator), torch.randn(1, generator=generator)) for _ in range(64)]
run = squall.Run(sys.argv[1], epochs=6, global_batch_size=32, worker_batch_size=16, checkpoint="2step")
model = nn.Sequential(nn.Linear(64, 2000), nn.ReLU(), nn.Linear(2000, 1))  # 0.5 MB, and as much of momentum
model, optimizer = run.setup(model, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9))
filler = Path(sys.argv[1]).parent / "filler"
for step in run.steps(data):
    for inputs, targets in step:
        step.backward((model(inputs) - targets).square().sum())
    optimizer.step()
    optimizer.zero_grad()
    run.saver.finish()  # what was ordered is written, or was refused, before the disk changes
    if len(sys.argv) > 2 and step.index == 3:  # step 2 is saved
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
    if len(sys.argv) > 2 and step.index == 8:
        filler.unlink()
run.finish()
"""


def in_namespace(script: str, folder: Path, size: str) -> subprocess.CompletedProcess[str]:
    """Runs a shell script where `folder` is a file system of that size."""
    mounted = f"{_MOUNT.format(size=size, folder=folder)}\n{script}"
    command = ["unshare", "--mount", "--map-root-user", "sh", "-ec", mounted]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment(), check=False)


def test_a_full_disk_ends_nothing_and_is_said(tmp_path: Path) -> None:
    """Filled after step 4, freed after step 9: the saves in between fail, the ones after it do not."""
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    (tmp_path / "loop.py").write_text(LOOP)
    done = in_namespace(
        f"{sys.executable} {tmp_path}/loop.py {disk}/run fill\ncp -r {disk}/run {kept}", disk, size="5m"
    )
    assert done.returncode == 0, done.stderr
    sessions = [json.loads(line) for line in (kept / "sessions.jsonl").read_text().splitlines()]
    failed = [record for record in sessions if record["kind"] == "save_failed"]
    saved = [record["step"] for record in sessions if record["kind"] == "saved"]
    assert [record["step"] for record in failed] == [4, 6, 8]
    assert {(record["error"], record["kept"]) for record in failed} == {("No space left on device", 2)}
    assert saved == [2, 10, 12]
    undisturbed = tmp_path / "undisturbed"
    subprocess.run([sys.executable, tmp_path / "loop.py", undisturbed], check=True, timeout=100, env=environment())
    compare(undisturbed, kept)


def test_a_disk_that_stays_full_keeps_the_last_checkpoint_and_says_how_to_go_on(tmp_path: Path) -> None:
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    (tmp_path / "loop.py").write_text(LOOP.replace("filler.unlink()", "pass"))
    script = f"{sys.executable} {tmp_path}/loop.py {disk}/run fill || true\nrm {disk}/filler\ncp -r {disk}/run {kept}"
    done = in_namespace(script, disk, size="5m")
    assert "cannot be written to" in done.stderr
    assert "No space left on device" in done.stderr
    assert "run it again: " in done.stderr
    assert [path.name for path in (kept / "checkpoints").iterdir()] == ["step-00000002"]
    (tmp_path / "loop.py").write_text(LOOP)
    subprocess.run([sys.executable, tmp_path / "loop.py", kept], check=True, timeout=100, env=environment())
    undisturbed = tmp_path / "undisturbed"
    subprocess.run([sys.executable, tmp_path / "loop.py", undisturbed], check=True, timeout=100, env=environment())
    compare(undisturbed, kept)


def test_a_read_only_folder_is_one_clear_error(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "loop.py").write_text(LOOP)
    script = (
        f"mkdir {disk}/run\ntouch {disk}/run/records.jsonl\n"
        f'echo \'{{"target": "digits"}}\' > {disk}/run/run.json\n'
        f"{sys.executable} -m squall recipes digits > {disk}/run/recipe.toml\n"
        f"mount -o remount,ro {disk}\nset +e\n"
        f"{sys.executable} {tmp_path}/loop.py {disk}/new\n"
        f"{sys.executable} -m squall train digits --out {disk}/new\necho status $?\n"
        f"{sys.executable} -m squall resume {disk}/run\necho status $?\n"
    )
    done = in_namespace(script, disk, size="2m")
    assert done.stdout.split() == ["status", "2", "status", "2"]
    assert done.stderr.count("cannot be written") == 3
    assert done.stderr.count("Read-only file system") == 3
