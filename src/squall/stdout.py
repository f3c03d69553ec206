"""Standard output whose reader has gone (`squall train ... | head`): the training goes on and says no more."""

from __future__ import annotations

import os
import sys
from contextlib import suppress


def mute() -> None:
    """From now on what is printed goes nowhere, also what Python flushes when it ends."""
    with suppress(OSError, ValueError):  # a stream of somebody's own has no descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
