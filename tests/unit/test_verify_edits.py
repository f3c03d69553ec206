"""Changes as lines of the user's file: applied as they stand they mend it; where there is doubt there are none."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

from squall.verify import edits
from squall.verify.finding import Edit, Place

_PLAIN = """
def main():
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=8, sampler=sampler)
    for epoch in range(3):
        for x, y in loader:  #
            step(x, y)
"""
_TWO_COUNT = """
def main():
    loader = DataLoader(data)
    for trial in range(2):
        for epoch in range(3):
            for x, y in loader:  #
                step(x, y)
"""
_FUNCTION = """
def train(model, loader, epoch):
    model.train()
    for number, (x, y) in enumerate(loader):  #
        step(x, y)
"""
_METHOD = """
class Trainer:
    def __init__(self):
        self.loader = DataLoader(data, sampler=DistributedSampler(data))
        self.epochs = 3

    def run(self):
        for number in range(self.epochs):
            for x in tqdm(self.loader, desc="training"):  #
                self.step(x)
"""
_SCALED = """
def main():
    for x, y in loader:
        with autocast("cpu"):
            loss = model(x, y)
        scaler.scale(loss).backward()
        if clip:
            nn.utils.clip_grad_norm_(  #
                model.parameters(), 1.0
            )
        scaler.step(optimizer)
        schedule.step()
        scaler.update()
"""
_MODES = """
model.train()
for epoch in range(3):
    for x, y in loader:
        loss = criterion(model(x), y)  #
        optimizer.step()
    model.eval()
    evaluate(model)
"""


def place_in(folder: Path, code: str) -> Place:
    """The line with the mark of a file with some code."""
    path = folder / "train.py"
    path.write_text(code, encoding="utf-8")
    lines = code.splitlines()
    number = next(number for number, line in enumerate(lines, 1) if line.endswith("#"))
    return Place(path=str(path), line=number, text=lines[number - 1].strip())


def applied(code: str, change: tuple[Edit, ...]) -> list[str]:
    """The lines of a file once it is changed: numbers of lines that come are those that they then have."""
    lines = code.splitlines()
    for edit in change:
        if edit.mark == "+":
            lines.insert(edit.line - 1, edit.text)
    for edit in change:
        assert lines[edit.line - 1] == edit.text
    ast.parse("\n".join(lines))
    return lines


@pytest.mark.parametrize(
    ("change", "code", "new", "before"),
    [
        (edits.set_epoch, _PLAIN, "        sampler.set_epoch(epoch)", "        for x, y in loader:  #"),
        (
            *(edits.set_epoch, _FUNCTION, "    loader.sampler.set_epoch(epoch)"),
            "    for number, (x, y) in enumerate(loader):  #",
        ),
        (
            *(edits.set_epoch, _METHOD, "            self.loader.sampler.set_epoch(number)"),
            '            for x in tqdm(self.loader, desc="training"):  #',
        ),
        (edits.unscale, _SCALED, "            scaler.unscale_(optimizer)", "            nn.utils.clip_grad_norm_(  #"),
        (edits.train_mode, _MODES, "    model.train()", "    for x, y in loader:"),
    ],
)
def test_the_line_comes_where_it_belongs(
    tmp_path: Path, change: Callable[[Place], tuple[Edit, ...]], code: str, new: str, before: str
) -> None:
    place = place_in(tmp_path, code)
    lines = applied(code, change(place))
    assert lines[lines.index(new, 3) + 1] == before  # after the first lines: `model.train()` stands above, too
    assert len(lines) == len(code.splitlines()) + 1


@pytest.mark.parametrize(
    ("change", "code", "why"),
    [
        (edits.set_epoch, _PLAIN.replace("for epoch in", "for _ in"), "the epoch has no name"),
        (edits.set_epoch, _PLAIN.replace("for epoch in range(3)", "while True"), "no loop that counts"),
        (edits.set_epoch, _FUNCTION.replace("epoch", "count"), "the epoch is not known there"),
        (edits.set_epoch, _PLAIN.replace("in loader", "in batches[0]"), "the loader has no name"),
        (edits.set_epoch, _PLAIN.replace("in loader", "in zip(counts, loader)"), "not the loader's batches alone"),
        (edits.set_epoch, _PLAIN.replace("in loader", "in make(data)"), "a new loader each time"),
        (edits.set_epoch, _PLAIN.replace("DataLoader(", "Prefetcher("), "it may have no sampler"),
        (edits.set_epoch, _PLAIN.replace("range(3)", '("train", "valid")'), "those are no epochs"),
        (edits.set_epoch, _TWO_COUNT, "which loop counts epochs?"),
        (edits.unscale, _SCALED.replace("scaler.step(optimizer)", "scaler.step(one); scaler.step(two)"), "two"),
        (edits.unscale, _SCALED.replace("scaler.step(optimizer)", "step(optimizer)"), "no scaler's step"),
        (edits.train_mode, _MODES.replace("criterion(model(x), y)", "compute(x, y)"), "no network is called there"),
        (
            *(edits.train_mode, _MODES.replace("model(x), y)", "model(x), ema(x))") + "ema.eval()\n"),
            "two networks are called",
        ),
        (edits.train_mode, _MODES.replace("for epoch in range(3)", "if True"), "no loop over epochs"),
    ],
)
def test_in_doubt_there_are_no_lines(
    tmp_path: Path, change: Callable[[Place], tuple[Edit, ...]], code: str, why: str
) -> None:
    assert change(place_in(tmp_path, code)) == (), why


def test_a_sampler_that_is_not_seen_from_the_loop_is_named_by_its_loader(tmp_path: Path) -> None:
    code = """
def main():
    sampler = DistributedSampler(data)
    loader = DataLoader(data, sampler=sampler)
    train(loader)

def train(loader):
    for epoch in range(3):
        start = now()
        for x, y in loader:  #
            step(x, y)
"""
    new, after = edits.set_epoch(place_in(tmp_path, code))
    assert (new.mark, new.line, new.text) == ("+", 10, "        loader.sampler.set_epoch(epoch)")
    assert (after.mark, after.line, after.text) == (" ", 11, "        for x, y in loader:  #")


def test_a_file_that_has_changed_or_gone_has_no_lines(tmp_path: Path) -> None:
    place = place_in(tmp_path, _PLAIN)
    assert edits.set_epoch(Place(path=place.path, line=place.line - 1, text=place.text)) == ()
    assert edits.set_epoch(Place(path=place.path, line=999, text=place.text)) == ()
    assert edits.set_epoch(Place(path=str(tmp_path / "none.py"), line=1, text="")) == ()
    assert edits.set_epoch(None) == ()
