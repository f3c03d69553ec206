"""Main functions of ranks for the tests of the stage: well-behaved ones, and some that misbehave in one way each."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch


def write(folder, rank, /, **values):
    (folder / f"told-{rank}.json").write_text(json.dumps(values))


def nothing(**_):
    pass


def facts(rank, processes, folder, **options):
    """What a rank finds when it begins."""
    stage = int(Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[1])
    print("said to stdout")
    print("said to stderr", file=sys.stderr)
    write(
        folder,
        rank,
        rank=rank,
        processes=processes,
        options=options,
        environ=dict(os.environ),
        folder=os.getcwd(),
        stdin=sys.stdin.read(),
        threads=torch.get_num_threads(),
        tasks=len(os.listdir("/proc/self/task")),
        stage_tasks=len(os.listdir(f"/proc/{stage}/task")),
        cuda=torch.cuda.is_initialized(),
        leads_session=os.getsid(0) == os.getpid(),
        pipes=sorted(link for fd in os.listdir("/proc/self/fd") if (link := _link(fd)).startswith(("pipe", "socket"))),
        draws=[random.random(), float(np.random.rand()), float(torch.rand(()))],
        loaded=sorted(name for name in ("accelerate", "lightning") if name in sys.modules),
    )


def _link(fd):
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


def all_reduce(rank, processes, folder):
    torch.distributed.init_process_group("gloo")
    total = torch.full((1000,), rank + 1.0)
    torch.distributed.all_reduce(total)
    write(folder, rank, total=total.sum().item())
    torch.distributed.destroy_process_group()


def train_ddp(rank, processes, folder, threads):
    """A backward pass with hooks, loaders that are forked, and a pool of arithmetic threads made after the fork."""
    torch.distributed.init_process_group("gloo")
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(512, 512))
    data = torch.utils.data.TensorDataset(torch.randn(64, 512))
    for (batch,) in torch.utils.data.DataLoader(data, batch_size=32, num_workers=2):
        torch.mm(torch.ones(600, 600), torch.ones(600, 600))
        model(batch).square().sum().backward()
    gradient = model.module.weight.grad.sum().item()
    everyone = [None] * processes
    torch.distributed.all_gather_object(everyone, gradient)
    write(folder, rank, gradients=everyone, threads=torch.get_num_threads(), tasks=len(os.listdir("/proc/self/task")))
    torch.distributed.destroy_process_group()


def train_accelerate(rank, processes, folder):
    import accelerate

    accelerator = accelerate.Accelerator(cpu=True)
    model = torch.nn.Linear(4, 1)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1))
    accelerator.backward(model(torch.full((2, 4), rank + 1.0)).sum())
    optimizer.step()
    weights = accelerator.gather(accelerator.unwrap_model(model).weight.detach().flatten())
    write(folder, rank, processes=accelerator.num_processes, equal=bool((weights.view(processes, 4).std(0) == 0).all()))


def train_lightning(rank, processes, folder):
    import lightning
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    before = rank_zero_only.rank

    class Fit(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def training_step(self, batch, _):
            return self.layer(batch[0]).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(16, 4)), batch_size=4)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        strategy="ddp",
        devices=processes,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Fit(), data)
    write(folder, rank, before=before, world=trainer.world_size, steps=trainer.global_step)


def end(rank, how):
    """Rank 1 ends in a way of its own."""
    if rank == 1:
        how()


def leave(rank, value, **_):
    end(rank, lambda: sys.exit(value))


def divide(rank, **_):
    end(rank, lambda: 1 / 0)  # the line that divides


def divide_while_another_waits(rank, **_):
    end(rank, lambda: 1 / 0)
    wait_for_ever()


def wait_for_ever():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()  # waits in C code


def hang(rank, **_):
    end(rank, wait_for_ever)


def crash(rank, **_):
    import ctypes

    end(rank, lambda: ctypes.string_at(0))  # the line that crashes


def kill_itself(rank, **_):
    end(rank, lambda: os.kill(os.getpid(), signal.SIGKILL))


def raise_nameless(rank, **_):
    class OddError(Exception):
        def __str__(self):
            raise ValueError

    end(rank, lambda: (_ for _ in ()).throw(OddError()))


def talk(rank, **_):
    for line in range(30):
        print(f"line {line}", file=sys.stderr)
    end(rank, lambda: os._exit(5))


def threads_and_exit_functions(rank, folder, **_):
    """What an interpreter waits for and calls before it ends."""
    import atexit

    go = threading.Event()
    atexit.register(lambda: (folder / f"called-{rank}").touch())
    threading.Thread(target=lambda: (go.wait(), (folder / f"joined-{rank}").touch())).start()
    threading.Thread(target=go.set).start()


# how scripts leave processes behind; each tells the numbers of those


def forks_and_both_go_on(folder, rank):
    pid = os.fork()
    if pid:
        return [pid]
    raise RuntimeError("this is the child")


def starts_a_program(folder, rank):
    return [subprocess.Popen(["sleep", "600"]).pid]


def starts_a_deaf_program(folder, rank):
    heard = subprocess.Popen(["sh", "-c", "trap '' TERM HUP INT; echo; sleep 600; sleep 600"], stdout=subprocess.PIPE)
    heard.stdout.readline()
    return [heard.pid]


def becomes_a_daemon(folder, rank):
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.write(writer, str(os.getpid()).encode())
        os.closerange(0, 256)
        while True:
            time.sleep(600)  # never ends by itself: the stage must end it
    return [int(os.read(reader, 32))]


def starts_a_family(folder, rank):
    """A child with children, whose parents are gone."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        for _ in range(5):
            os.fork()
        os.write(writer, f"{os.getpid()}\n".encode())
        while True:
            time.sleep(600)  # never ends by itself: the stage must end it
    told = b""
    while told.count(b"\n") < 32:
        told += os.read(reader, 4096)
    return [int(line) for line in told.split()]


def misbehave(rank, folder, how, processes):
    write(folder, rank, started=[*globals()[how](folder, rank), os.getpid()])


def misbehave_and_wait(rank, folder, how, deaf, processes):
    """Rank 1 fails once rank 0 has misbehaved and waits."""
    if rank == 1:
        (folder / "fifo").read_text()
        raise RuntimeError("enough")
    misbehave(rank, folder, how, processes)
    if deaf:
        for number in range(1, signal.NSIG):
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_IGN)
        os.closerange(3, 1024)
    (folder / "fifo").write_text("ready")
    wait_for_ever()


def kill_parent(rank, folder, processes):
    program = subprocess.Popen(["sleep", "600"])
    write(folder, rank, started=[program.pid, os.getpid()])
    os.kill(os.getppid(), signal.SIGKILL)
    wait_for_ever()


def hang_and_tell(rank, fifo, **_):
    """Says that it runs, with the numbers of itself and of a program that it has started."""
    program = subprocess.Popen(["sleep", "600"], start_new_session=True)
    with open(fifo, "w") as told:
        told.write(f"{os.getpid()} {program.pid}\n")
    wait_for_ever()


def stand_in(folder):
    """What the stage does for an owner that is gone."""
    from squall.verify.stage import kin

    (folder / "stood-in").write_text("ranks were there" if kin.below(os.getpid()) else "no rank was there any more")
