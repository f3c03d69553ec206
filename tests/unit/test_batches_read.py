"""What a batch holds: a function of its draw and the seed. (With loader processes: tests/process.)"""

import random
from collections import OrderedDict, namedtuple
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.utils.data import Subset

from squall.data.augment import compile_ops
from squall.data.batches import read
from squall.data.images import ImageSet
from squall.data.nested import describe, move, num_bytes
from squall.data.order import Draw, Order
from squall.errors import InputError, UserCodeError
from squall.run.spec import RunSpec
from squall.run.stepper import finisher

CPU = torch.device("cpu")
Pair = namedtuple("Pair", "x y")


def draw(*ids: int, epoch: int = 0) -> Draw:
    return Draw(np.array(ids, dtype=np.int64), np.full(len(ids), epoch, dtype=np.int64))


class Noisy:
    """Draws from all three global generators, as users' transforms do."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        assert type(index) is int  # Hugging Face and list-backed sets take no NumPy integers
        return torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()], dtype=torch.float64), index


class ByEpoch:
    """Speaks the richer form, and leaves samples 4 and 5 out."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[int, int, int] | None:
        return self.read(index, 0, 0)

    def read(self, index: int, epoch: int, seed: int) -> tuple[int, int, int] | None:
        return None if index in (4, 5) else (index, epoch, seed)


def only(data, one: Draw, **options):
    (result,) = list(read(data, [one], **{"seed": 0, "device": CPU, **options}))
    return result


def test_a_sample_is_the_same_in_any_batch_after_any_other() -> None:
    alone = only(Noisy(), draw(7))[1][0][0]
    after = only(Noisy(), draw(3, 1, 7))[1][0][2]
    assert torch.equal(alone, after)


def test_numpy_does_not_repeat_augmentations() -> None:
    """pytorch#5059, #3880: NumPy's generator repeats in all loader processes; here it differs by sample."""
    values = only(Noisy(), draw(*range(10)))[1][0]
    for generator in range(3):
        assert len(set(values[:, generator].tolist())) == 10


def test_no_epoch_repeats_the_random_numbers_of_another() -> None:
    """Lightning#20412, with reseeding on: the same augmentations every epoch."""
    first, second = (only(Noisy(), draw(*range(10), epoch=epoch))[1][0] for epoch in (0, 1))
    assert not (first == second).any()


def test_ranks_share_no_random_numbers_and_their_number_changes_none() -> None:
    """transformers#37932: ranks share the seeds of their loaders."""
    order = Order(num_samples=10, global_batch_size=10, worker_batch_size=5, epochs=1, seed=0)
    ranks = [only(Noisy(), order.draw(order.step(0), j))[1] for j in range(2)]
    values = torch.cat([values for values, _ in ranks])
    assert len(set(values.flatten().tolist())) == 30
    one_rank = only(Noisy(), order.samples(0, 10))[1][0]
    assert torch.equal(values, one_rank)


def test_the_callers_generators_and_threads_are_left_alone() -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    wanted = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in read(Noisy(), [draw(1), draw(2)], seed=0, device=CPU):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == wanted


def test_samples_are_read_with_one_thread_as_in_loader_processes() -> None:
    class Threads(Noisy):
        def __getitem__(self, index: int) -> int:
            return torch.get_num_threads()

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert only(Threads(), draw(0))[1].tolist() == [1]
    finally:
        torch.set_num_threads(threads)


def test_collate_draws_by_its_samples_too() -> None:
    def mixup(samples: list) -> torch.Tensor:
        return torch.rand(3)

    once = only(Noisy(), draw(3, 4), collate=mixup)[1]
    list(read(Noisy(), [draw(9)], seed=0, device=CPU))
    assert torch.equal(once, only(Noisy(), draw(3, 4), collate=mixup)[1])
    assert not torch.equal(once, only(Noisy(), draw(3, 4, epoch=1), collate=mixup)[1])


def test_what_a_set_leaves_out_is_missing_from_the_draw() -> None:
    got, batch = only(ByEpoch(), draw(3, 4, 6, epoch=2), seed=8)
    assert got.ids.tolist() == [3, 6]
    assert got.epochs.tolist() == [2, 2]
    assert [column.tolist() for column in batch] == [[3, 6], [2, 2], [8, 8]]
    got, batch = only(ByEpoch(), draw(4, 5))
    assert len(got) == 0
    assert batch is None


def test_foreign_methods_called_read_and_batch_are_not_called() -> None:
    class Foreign(Noisy):
        def read(self, path: str) -> str:
            raise AssertionError

        def batch(self, batch_size: int) -> None:  # Hugging Face's
            raise AssertionError

    assert torch.equal(only(Foreign(), draw(1))[1][0], only(Noisy(), draw(1))[1][0])


def test_a_subset_keeps_the_random_numbers_of_its_samples() -> None:
    pixels = torch.randint(0, 256, (10, 6, 6, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = ImageSet(pixels, torch.arange(10), compile_ops([{"random_crop": 6, "padding": 2}], (6, 6, 1)), (), "x")
    _, (inputs, targets) = only(Subset(images, [9, 5, 2]), draw(0, 2, epoch=3))
    assert targets.tolist() == [9, 2]
    assert torch.equal(inputs, only(images, draw(9, 2, epoch=3))[1][0])
    assert not torch.equal(inputs, only(images, draw(9, 2, epoch=4))[1][0])
    assert only(Subset(ByEpoch(), [9, 5, 2]), draw(0, 2, epoch=3))[1][0].tolist() == [9, 2]


def test_finish_gets_the_batch_and_the_draw_as_delivered() -> None:
    seen = []

    def finish(batch: list, got: Draw) -> str:
        seen.append(got.ids.tolist())
        return f"{len(batch)} columns"

    assert only(ByEpoch(), draw(3, 4), finish=finish)[1] == "3 columns"
    assert only(ByEpoch(), draw(4), finish=finish)[1] is None
    assert seen == [[3]]


def test_batches_are_aligned_and_the_readers_own() -> None:
    memory = torch.zeros(64)

    class Views(Noisy):
        def __getitem__(self, index: int) -> torch.Tensor:
            return memory[index + 1 : index + 4]

    views = only(Views(), draw(0, 1), collate=lambda samples: {"a": samples, "n": 3})[1]
    assert views["n"] == 3
    for tensor in views["a"]:
        assert tensor.data_ptr() % 64 == 0
        tensor.fill_(1)
    assert not memory.any()
    array = np.zeros(65, dtype=np.uint8)[1:]
    assert move(torch.from_numpy(array), CPU).data_ptr() % 64 == 0


def test_default_batches_are_contiguous_whatever_the_samples_layout() -> None:
    class Permuted(Noisy):
        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.arange(24.0).view(4, 2, 3).permute(2, 0, 1)

    assert only(Permuted(), draw(0, 1))[1].is_contiguous()


def test_move_keeps_the_structure() -> None:
    class Graph:
        def to(self, device: torch.device) -> tuple[str, torch.device]:
            return "moved", device

    nested = Pair([torch.ones(2), "text"], OrderedDict(a=(torch.zeros(1), None), g=Graph()))
    got = move(nested, torch.device("meta"))
    assert type(got) is Pair
    assert got.x[0].device.type == "meta"
    assert got.x[1] == "text"
    assert type(got.y) is OrderedDict
    assert got.y["a"][0].device.type == "meta"
    assert got.y["g"] == ("moved", torch.device("meta"))
    assert nested.y["a"][0].device == CPU
    assert num_bytes(nested) == 12
    assert describe(nested.x) == "(float32 (2,), str)"


@pytest.mark.parametrize("channels_last", [True, False])
def test_images_anywhere_in_a_batch_get_the_recipes_memory_format(channels_last: bool) -> None:
    spec = RunSpec(epochs=1, global_batch_size=2, worker_batch_size=1, channels_last=channels_last)
    images = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)[:, :, :, ::2]
    ids = torch.arange(16).view(2, 2, 2, 2).transpose(1, 2)
    got = finisher(Noisy(), spec)(Pair(OrderedDict(a=[images]), (ids, "text")), draw(0, 1))
    assert type(got) is Pair
    assert type(got.x) is OrderedDict
    kind = torch.channels_last if channels_last else torch.contiguous_format
    assert torch.equal(got.x["a"][0], images)
    assert got.x["a"][0].is_contiguous(memory_format=kind)
    assert got.y[0] is ids
    assert got.y[1] == "text"


def test_draws_are_taken_one_by_one_and_closing_ends_their_source() -> None:
    taken: list[int] = []

    def draws() -> Iterator[Draw]:
        for index in range(10):
            taken.append(index)
            yield draw(index)

    batches = read(Noisy(), draws(), seed=0, device=CPU)
    next(batches)
    batches.close()
    assert taken == [0]


def test_errors_show_the_users_frames_only() -> None:
    with pytest.raises(UserCodeError) as caught:
        only(Broken(KeyError("gooseneck")), draw(1, 6))
    error = caught.value
    assert error.headline == "your code raised KeyError at train[6]"
    (place, line), (helper, _), (kind, message) = error.rows
    assert place.startswith("tests/unit/test_batches_read.py:")
    assert place.endswith(" in __getitem__")
    assert line == "return self.look_up(index)"
    assert helper.endswith(" in look_up")
    assert (kind, message) == ("KeyError", "'gooseneck'")
    assert "squall/data/batches.py" in error.traceback
    assert isinstance(error.__cause__, KeyError)


def test_an_input_error_passes_as_it_is() -> None:
    given = InputError("a.jpg does not decode", [("to do", "remove it")])
    with pytest.raises(InputError) as caught:
        only(Broken(given), draw(6))
    assert caught.value is given


def test_try_alone_is_derived_from_a_modules_global_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Broken(ValueError("x"))
    monkeypatch.setitem(globals(), "task", type("Task", (), {})())
    task.train = data  # type: ignore[name-defined] # noqa: F821
    with pytest.raises(UserCodeError) as caught:
        only(data, draw(6))
    assert caught.value.rows[-1] == ("try alone", f'python -c "import {__name__}; {__name__}.task.train[6]"')


def test_errors_in_collate_name_the_samples() -> None:
    def collate(samples: list) -> None:
        raise ValueError("no")

    with pytest.raises(UserCodeError) as caught:
        only(Noisy(), draw(6, 7, 8), collate=collate, name="val")
    assert caught.value.headline == "your code raised ValueError at collate of val[6, 7] and 1 more"
    assert caught.value.rows[0][0].endswith("in collate")


def test_samples_that_do_not_stack_are_shown_with_their_shapes() -> None:
    class Ragged(Noisy):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return torch.zeros(3, 5 + (index > 6)), index

    with pytest.raises(UserCodeError) as caught:
        only(Ragged(), draw(2, 3, 7))
    rows = dict(caught.value.rows)
    assert caught.value.headline == "the samples of train do not join to a batch"
    assert rows["train[2]"] == "(float32 (3, 5), int)"
    assert rows["train[7]"] == "(float32 (3, 6), int)"
    assert "own collate=" in rows["to do"]


class Broken(Noisy):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getitem__(self, index: int) -> int:
        return self.look_up(index)

    def look_up(self, index: int) -> int:
        if index == 6:
            raise self.error
        return index
