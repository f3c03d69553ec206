"""What has to be known of Squall itself: where a step begins, and what it reads.

Squall takes each pass's gradients out of `.grad` as they come, and its ranks may host different numbers of passes. So
a step's begin is said by Squall, and its updates are told apart by their number. Samples come from its own reader,
which seeds the global generators for each of them: only generators that the data set holds can be shared.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy

from squall.verify.observe import contents, streams
from squall.verify.observe.loaders import Loaders
from squall.verify.observe.parameters import Parameters
from squall.verify.observe.recorder import Recorder


class Ours:
    """Watches Squall's steps and reading."""

    def __init__(self, recorder: Recorder, parameters: Parameters, loaders: Loaders) -> None:
        self.recorder, self.parameters, self.loaders = recorder, parameters, loaders

    def steps(self, module: ModuleType) -> None:
        """In `squall.run.stepper`."""
        open_step = module.Stepper.open_step

        @functools.wraps(open_step)
        def watched(stepper: Any, plan: Any) -> Any:
            if self.recorder.here:
                self.recorder.about["lockstep"] = True
                self.parameters.begin_window()
            return open_step(stepper, plan)

        module.Stepper.open_step = watched
        self.reading(module)

    def reading(self, module: ModuleType) -> None:
        """In any module that reads by `squall.data.batches.read`."""
        read = module.read

        @functools.wraps(read)
        def watched(data: Any, draws: Any, **named: Any) -> Any:
            if not self.recorder.here:
                return read(data, draws, **named)
            return self._noted(data, read(data, draws, **named), named.get("name", "train"))

        module.read = watched  # type: ignore[attr-defined]

    def samples(self, module: ModuleType) -> None:
        """In `squall.data.batches`: each sample that is read one by one."""
        sample = module._Reader._sample
        seed = module.seed_sample
        streams.SEEDS.install()

        @functools.wraps(seed)
        def seeded(*args: Any) -> None:  # by us, before each sample: not the data set's doing
            seed(*args)
            if streams.SEEDS.current is not None:
                streams.SEEDS.current.restart()

        module.seed_sample = seeded  # type: ignore[attr-defined]

        @functools.wraps(sample)
        def watched(reader: Any, index: int, epoch: int) -> Any:
            if not self.recorder.observing or reader.name != "train":
                return sample(reader, index, epoch)
            with streams.reading(streams.held_by(reader.data)) as drawn:
                found = sample(reader, index, epoch)
            number = self.loaders.root(reader.data)[1]
            content = contents.content(found)
            self.loaders.add_items([[number, epoch, int(index), *part, content, -1] for part in drawn.parts])
            return found

        module._Reader._sample = watched

    def _noted(self, data: Any, source: Iterator[Any], name: str) -> Iterator[Any]:
        """The same batches, each noted as one of a pass over the data."""
        root = self.loaders.root(data)[1]
        ids: list[int] = []
        sizes: list[int] = []
        event: dict[str, Any] | None = None
        epoch = -1

        def close() -> None:
            if event is not None:
                event["sizes"], event["batches"] = list(sizes), len(sizes)
                self.recorder.keep(event, "indices", numpy.asarray(ids, dtype=numpy.int64))

        try:
            for draw, batch in source:
                now = int(draw.epochs[0]) if len(draw) else epoch
                if event is None or now != epoch:
                    close()
                    ids.clear()
                    sizes.clear()
                    epoch = now
                    event = self.loaders.note_pass(
                        root, len(data), sampler={"class": "Squall", "batches": name}, kind=type(data).__name__
                    )
                ids += [int(one) for one in draw.ids]
                sizes.append(len(draw))
                self.loaders.given(batch, of=event["n"], position=len(sizes) - 1, size=len(draw), data=root)
                close()
                yield draw, batch
        finally:
            close()
            closer = getattr(source, "close", None)
            if closer is not None:
                closer()
