"""ResNet-50 at 224 on one CUDA device: Squall's `exact` and `fast` against plain PyTorch, interleaved.

Synthetic uint8 images lie on the device, so that only the training step is measured; both sides normalise them there.
bfloat16 autocast, channels-last, fused SGD with Nesterov momentum, the same network and minibatch.

    python benchmarks/gpu.py [--rounds 5] [--global-batch-size 256] [--worker-batch-size 32]

Contenders: `torch_whole` (the minibatch in one pass), `torch_accumulate` (passes of n), and Squall with one virtual
worker a pass and with all of them fused (normalisation over n in both).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from harness import HERE, FailedError, Records, median_ratio, read, rounds_of, run, table

CONTENDERS = ("torch_whole", "torch_accumulate", "exact", "fast", "exact_fused", "fast_fused")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> int:
    options = _options()
    if not torch.cuda.is_available():
        print("gpu: no CUDA device here", file=sys.stderr)
        return 2
    if options.contender:
        options.out.write_text(json.dumps(contend(options)), encoding="utf-8")
        return 0
    settings = {key: value for key, value in vars(options).items() if key not in ("out", "contender")}
    records = Records(
        "gpu", {**settings, "device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}, options.out
    )
    with tempfile.TemporaryDirectory(prefix="squall-gpu-") as scratch:
        for number in range(options.rounds):
            for name in CONTENDERS:
                records.write(_measure(name, number, options, Path(scratch)))
    done = read(records.path)
    speeds = rounds_of(done, "images_per_second")
    peak = {record["contender"]: record["peak_bytes"] for record in done if record["kind"] == "run"}
    rows = []
    for name, rounds in speeds.items():
        ratios = [median_ratio(rounds, speeds.get(base, {})) for base in CONTENDERS[:2]]
        cells = ["-" if ratio is None else f"{ratio:.3f}x" for ratio in ratios]
        spread = f"{min(rounds.values()):,.0f} .. {max(rounds.values()):,.0f}"
        rows.append([name, f"{statistics.median(rounds.values()):,.0f}", spread, *cells, f"{peak[name] / 1e9:.1f} GB"])
    print(table(["contender", "images/s", "range", "/ torch_whole", "/ torch_accumulate", "peak"], rows))
    failed = [record for record in done if record["kind"] == "failed"]
    print(*(f"{record['contender']}: {record['error']}" for record in failed), sep="\n")
    print(f"records: {records.path}")
    return 1 if failed else 0


def contend(options: argparse.Namespace) -> dict[str, float]:
    """One contender in this process: images per second over the window, and the device's peak memory."""
    device = torch.device("cuda", 0)
    num = (options.warmup + options.steps) * options.global_batch_size
    generator = torch.Generator(device).manual_seed(0)
    pool = torch.randint(0, 256, (options.pool, 224, 224, 3), dtype=torch.uint8, device=device, generator=generator)
    labels = torch.randint(0, 1000, (options.pool,), device=device, generator=generator)
    watch = _Watch(options.warmup, options.steps)
    loop = _torch_loop if options.contender.startswith("torch") else _squall_loop
    loss = loop(options, pool, labels, num, watch.updated)
    images = options.steps * options.global_batch_size
    speed = images / watch.seconds
    return {"images_per_second": speed, "loss": loss, "peak_bytes": torch.cuda.max_memory_allocated()}


class _Watch:
    """Times a window of updates, the device's queue empty at both ends."""

    def __init__(self, warmup: int, steps: int) -> None:
        self._ends, self._done, self._begin, self.seconds = (warmup, warmup + steps), 0, 0.0, 0.0

    def updated(self) -> None:
        self._done += 1
        if self._done in self._ends:
            torch.cuda.synchronize()
            self._begin, self.seconds = time.perf_counter(), time.perf_counter() - self._begin


def _network() -> torch.nn.Module:
    from squall.model import build

    torch.manual_seed(0)
    return build("resnet50", {"num_classes": 1000})


def _torch_loop(
    options: argparse.Namespace, pool: torch.Tensor, labels: torch.Tensor, num: int, updated: Callable[[], None]
) -> float:
    """What a user of plain PyTorch writes who knows bfloat16, channels-last and the fused rule."""
    model = _network().to(pool.device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4, fused=True)
    scale = torch.tensor([1 / (255 * s) for s in STD], device=pool.device)
    shift = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)], device=pool.device)
    size = options.global_batch_size if options.contender == "torch_whole" else options.worker_batch_size
    loss = torch.zeros(())
    for _ in range(num // options.global_batch_size):
        rows = torch.randint(0, len(pool), (options.global_batch_size,), device=pool.device)
        optimizer.zero_grad()
        for part in rows.split(size):
            images = (pool[part].float() * scale + shift).permute(0, 3, 1, 2)  # (n, 3, 224, 224), channels-last
            with torch.autocast("cuda", torch.bfloat16):
                loss = F.cross_entropy(model(images), labels[part])
            (loss * (len(part) / len(rows))).backward()
        optimizer.step()
        updated()
    return float(loss)


def _squall_loop(
    options: argparse.Namespace, pool: torch.Tensor, labels: torch.Tensor, num: int, updated: Callable[[], None]
) -> float:
    """The own-loop door on the same images."""
    import squall
    from squall.data.augment import compile_ops
    from squall.data.images import ImageSet

    reduction, _, fused = options.contender.partition("_")
    transform = compile_ops([{"normalize": "imagenet"}], (224, 224, 3))
    data = ImageSet(pool, labels, transform, tuple(str(i) for i in range(1000)), "synthetic")
    epochs = -(-num // len(pool))
    run = squall.Run(
        options.out.with_suffix(".run"),
        epochs=epochs,
        global_batch_size=options.global_batch_size,
        worker_batch_size=options.worker_batch_size,
        reduction=reduction,
        precision="bf16",
        channels_last=True,
        fuse=options.global_batch_size // options.worker_batch_size if fused else 1,
    )
    model = _network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4, fused=True)
    model, optimizer = run.setup(model, optimizer)
    loss = float("nan")
    for step in run.steps(data):
        for inputs, targets in step:
            step.backward(F.cross_entropy(model(inputs), targets, reduction="sum"))
        optimizer.step()
        optimizer.zero_grad()
        updated()
        loss = step.loss
    run.finish()
    return loss


def _measure(name: str, number: int, options: argparse.Namespace, scratch: Path) -> dict[str, object]:
    out = scratch / f"{name}-{number}.json"
    command = [sys.executable, str(HERE / "gpu.py"), "--contender", name, "--out", str(out)]
    for key in ("warmup", "steps", "pool", "global_batch_size", "worker_batch_size"):
        command += [f"--{key.replace('_', '-')}", str(getattr(options, key))]
    try:
        run(command, out.with_suffix(".log"), 600.0)
    except FailedError as error:
        return {"kind": "failed", "contender": name, "round": number, "error": str(error)}
    result = json.loads(out.read_text(encoding="utf-8"))
    print(
        f"round {number + 1} of {options.rounds}  {name:18s} {result['images_per_second']:8,.0f} images/s", flush=True
    )
    return {"kind": "run", "contender": name, "round": number, **result}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=10, help="updates before the window")
    parser.add_argument("--steps", type=int, default=30, help="updates in the window")
    parser.add_argument(
        "--pool", type=int, default=2048, help="synthetic images on the device; a multiple of the minibatch"
    )
    parser.add_argument("--global-batch-size", type=int, default=256)
    parser.add_argument("--worker-batch-size", type=int, default=32)
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="records file (default: benchmarks/records/gpu-TIME.jsonl)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
