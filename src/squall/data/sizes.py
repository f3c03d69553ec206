"""The sizes of a minibatch, of which any two give the third: kn samples an update, n a virtual worker, k workers.

Goyal et al. 2017, section 2.3: n is what normalisation sees, kn what the optimiser sees.
"""

from __future__ import annotations

from typing import Any

from squall.errors import Mistakes

BATCH_FIELDS = ("global_batch_size", "worker_batch_size", "virtual_workers")


def solve_batches(values: dict[str, Any], mistakes: Mistakes) -> None:
    """Puts `global_batch_size` and `worker_batch_size` in place of any two of the three; in place.

    Whether these two are whole numbers is left to the check of all fields.
    """
    given = {key: values[key] for key in BATCH_FIELDS if values.get(key) is not None}
    values.pop("virtual_workers", None)
    if "virtual_workers" in given and not _is_count(given["virtual_workers"]):
        mistakes.add(f"virtual_workers={given['virtual_workers']!r}", "must be a whole number of at least 1")
    if len(given) < 2:
        missing = [key for key in BATCH_FIELDS if key not in given]
        found = ", ".join(f"{key}={value!r}" for key, value in given.items()) or "batch sizes"
        mistakes.add(
            found, f"one more is needed: {' or '.join(missing)}" if given else f"give two of {', '.join(missing)}"
        )
    if len(given) < 2 or not all(map(_is_count, given.values())):
        for key in BATCH_FIELDS[:2]:
            values.setdefault(key, 1)  # stands in, so that one mistake is not reported as two
        return
    sizes: list[Any] = [given.get(key) for key in BATCH_FIELDS]
    total, each, workers = sizes
    if total is None:
        values["global_batch_size"] = each * workers
    elif each is None:
        values["worker_batch_size"] = max(1, total // workers)
        if total % workers:
            mistakes.add(f"global_batch_size={total}", f"is no multiple of virtual_workers={workers}")
    elif workers is not None and each * workers != total:
        mistakes.add(
            f"global_batch_size={total}",
            f"contradicts worker_batch_size={each} x virtual_workers={workers} = {each * workers}; give two of them",
        )
    elif each > total:
        mistakes.add(f"worker_batch_size={each}", f"is larger than global_batch_size={total}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
